"""How samples become the tensors of a step, and in which order."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.dataset import TokenSequence

IGNORE_INDEX = -100
"""The label of a position without loss, as PyTorch's cross entropy knows it."""

_POOL = 50
"""Batches that are sorted by length together: enough that few are mixed, few enough that an epoch
still mixes the data well."""


class SftCollator:
    """Samples, or tuples of samples that share a row -> what the model's forward takes.

    Rows are padded on the right, by their length and never by a token's id. `labels` are -100
    wherever nothing is learnt and at the first token of each sample, which nothing precedes.

    Of samples: `input_ids`, `attention_mask` and `labels`, all int64 of shape (batch, seq).

    Of tuples (packing): `input_ids`, `labels` and `position_ids`, which start again at 0 with each
    sample. From these Transformers derives that no sample sees another, under SDPA, eager and flex
    attention alike and for any batch size, but only without a mask and without a cache. Hence no
    `attention_mask`, and `use_cache` is false. `packing_is_isolated` tries it on a model.

    Args:
        multiple_of: the width of a batch is rounded up to one of its multiples; 8 suits tensor
            cores.
        flash: of tuples, also say where samples begin as flash attention's variable-length kernel
            wants it (`cu_seq_lens_q`, ...): by itself Transformers finds that out for one row only.
    """

    def __init__(self, *, pad_id: int, multiple_of: int = 1, flash: bool = False) -> None:
        self._pad_id = pad_id
        self._multiple_of = multiple_of
        self._flash = flash

    def __call__(
        self, items: Sequence[TokenSequence] | Sequence[tuple[TokenSequence, ...]]
    ) -> dict[str, Any]:
        import torch

        rows = [item if isinstance(item, tuple) else (item,) for item in items]
        packed = any(isinstance(item, tuple) for item in items)
        used = [sum(len(sample.ids) for sample in row) for row in rows]
        width = -(-max(used) // self._multiple_of) * self._multiple_of
        shape = (len(rows), width)
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        starts = []
        for number, row in enumerate(rows):
            first = 0
            for sample in row:
                last = first + len(sample.ids)
                starts.append(number * width + first)
                ids[number, first:last] = sample.ids
                labels[number, first + 1 : last] = np.where(
                    sample.loss_mask, sample.ids, IGNORE_INDEX
                )[1:]
                positions[number, first:last] = np.arange(last - first)
                first = last
            if first < width:  # the padding is a sample of its own, which no other sees
                starts.append(number * width + first)
                positions[number, first:] = np.arange(width - first)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "use_cache": False,
        }
        if not packed:
            mask = np.arange(width) < np.array(used)[:, None]
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
            return batch
        batch["position_ids"] = torch.from_numpy(positions)
        if self._flash:
            edges = torch.tensor([*starts, ids.size], dtype=torch.int32)
            longest = int(edges.diff().max())
            batch |= {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges}
            batch |= {"max_length_q": longest, "max_length_k": longest}
        return batch


def packing_is_isolated(model: Any, collator: SftCollator) -> bool:
    """Try whether the samples of a packed row stay apart in this model.

    A model that carries a state along the row (Mamba, linear attention) lets them leak into each
    other, whatever the attention does. Two rows that differ in their first sample only must give
    the second sample the same logits.
    """
    import torch

    def logits(first: Sequence[int]) -> Any:
        row = tuple(
            TokenSequence(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))
            for ids in (first, second)
        )
        batch = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in collator([row]).items()
            if name != "labels"
        }
        end = len(first) + len(second)
        return model(**batch).logits[0, len(first) : end].float()

    size = min(model.get_input_embeddings().weight.shape[0], 1000)
    second = [(7 * i + 3) % size for i in range(8)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one = logits([(5 * i + 1) % size for i in range(8)])
            other = logits([(3 * i + 2) % size for i in range(8)])
    finally:
        model.train(training)
    # Apart, they differ by rounding at most; a leak shows at the scale of the logits themselves.
    return bool((one - other).abs().max() <= 0.01 * one.std())


class LengthGroupedBatchSampler:
    """A batch sampler: lists of indices of similar length, so that little is padded.

    The order depends on nothing but lengths, batch size, seed and epoch. The longest batch comes
    first: if memory does not suffice for it, that shows in the first step.
    """

    def __init__(
        self,
        lengths: NDArray[np.int32],
        batch_size: int,
        *,
        seed: int,
        drop_last: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._lengths = lengths
        self._seed = seed
        self._epoch = 0
        self._skip = 0

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the epoch, from 0, and how many of its batches are done already."""
        self._epoch = epoch
        self._skip = skip

    def __len__(self) -> int:
        whole, rest = divmod(len(self._lengths), self.batch_size)
        return max(whole + bool(rest and not self.drop_last) - self._skip, 0)

    def __iter__(self) -> Iterator[list[int]]:
        chance = np.random.default_rng([self._seed, self._epoch])
        order = chance.permutation(len(self._lengths))
        pool = self.batch_size * _POOL
        batches: list[list[int]] = []
        rest: list[list[int]] = []
        for first in range(0, len(order), pool):
            part = order[first : first + pool]
            part = part[np.argsort(-self._lengths[part].astype(np.int64), kind="stable")]
            for start in range(0, len(part), self.batch_size):
                batch = part[start : start + self.batch_size].tolist()
                (batches if len(batch) == self.batch_size else rest).append(batch)
        batches = [batches[i] for i in chance.permutation(len(batches))]
        if batches:
            widest = max(range(len(batches)), key=lambda i: self._lengths[batches[i][0]])
            batches.insert(0, batches.pop(widest))
        yield from (batches + ([] if self.drop_last else rest))[self._skip :]
