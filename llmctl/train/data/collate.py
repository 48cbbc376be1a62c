"""Collation of samples into batches, and the order of the batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.dataset import TokenSequence
from llmctl.train.kernels.cross_entropy import IGNORE_INDEX

_POOL = 50
"""Batches that are sorted by length together: enough that few batches have mixed lengths, few
enough that an epoch still shuffles the data well."""


class SftCollator:
    """Collates samples, or tuples of samples packed into one row, to arguments of the model.

    Rows are padded on the right. Padding is found by length, never by token id. `labels` are -100
    at positions without loss and at the first token of each sample, which has no prefix.

    For samples: `input_ids` and `labels`, int64 of shape (batch, seq). There is no
    `attention_mask`: causal attention does not look at padding on the right, and without a mask it
    may use a faster kernel.

    For tuples (packing): also `position_ids`, which start at 0 with each sample. Transformers
    derives from them that samples do not attend to each other, under SDPA, eager and flex
    attention and for any batch size, but only without a mask and without a cache (`use_cache` is
    false). `packing_is_isolated` verifies this for a model.

    Args:
        multiple_of: the width of a batch is rounded up to a multiple of it; 8 suits tensor cores.
        flash: for tuples, also return the sample boundaries for the variable-length kernel of
            flash attention (`cu_seq_lens_q`, ...): Transformers derives them for a single row
            only.
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
            if first < width:  # the padding is a sample of its own
                starts.append(number * width + first)
                positions[number, first:] = np.arange(width - first)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "use_cache": False,
        }
        if not packed:
            return batch
        batch["position_ids"] = torch.from_numpy(positions)
        if self._flash:
            boundaries = torch.tensor([*starts, ids.size], dtype=torch.int32)
            longest = int(boundaries.diff().max())
            batch |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
            batch |= {"max_length_q": longest, "max_length_k": longest}
        return batch


def packing_is_isolated(model: Any, collator: SftCollator) -> bool:
    """Whether the samples of a packed row do not influence each other in a model.

    A recurrent layer (Mamba, linear attention, short convolutions) carries a state from one sample
    to the next, and some attention layers ignore `position_ids`. The logits of the second sample
    must have a gradient of exactly 0 with respect to the embeddings of the first: a masked
    attention weight is 0 in any number type, and a leak is not, however small.
    """
    import torch

    size = min(model.get_input_embeddings().weight.shape[0], 1000)
    first, second = (
        TokenSequence(
            np.array([(factor * i + 3) % size for i in range(8)], dtype=np.int32),
            np.ones(8, dtype=np.bool_),
        )
        for factor in (5, 7)
    )
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in collator([(first, second)]).items()
        if name != "labels"
    }
    embeddings = []

    def detach(_module: Any, _inputs: Any, output: Any) -> Any:
        embeddings.append(output.detach().requires_grad_(True))
        return embeddings[-1]

    training = model.training
    model.eval()
    hook = model.get_input_embeddings().register_forward_hook(detach)
    try:
        with torch.enable_grad():
            logits = model(**inputs).logits[0, len(first.ids) : len(first.ids) + len(second.ids)]
            (gradient,) = torch.autograd.grad(logits.float().logsumexp(-1).sum(), embeddings[-1])
    finally:
        hook.remove()
        model.train(training)
    return not gradient[0, : len(first.ids)].any().item()


class LengthGroupedBatchSampler:
    """A batch sampler: each batch has rows of similar length, so that there is little padding.

    The order depends only on lengths, batch size, seed and epoch. The batch with the longest row
    comes first: if it does not fit into memory, the first step fails.
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
        """Set the epoch, from 0, and the number of its batches to skip."""
        self._epoch = epoch
        self._skip = skip

    def __len__(self) -> int:
        whole, rest = divmod(len(self._lengths), self.batch_size)
        return max(whole + bool(rest and not self.drop_last) - self._skip, 0)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(len(self._lengths))
        pool = self.batch_size * _POOL
        batches: list[list[int]] = []
        rest: list[list[int]] = []
        for first in range(0, len(order), pool):
            part = order[first : first + pool]
            part = part[np.argsort(-self._lengths[part].astype(np.int64), kind="stable")]
            for start in range(0, len(part), self.batch_size):
                batch = part[start : start + self.batch_size].tolist()
                (batches if len(batch) == self.batch_size else rest).append(batch)
        batches = [batches[i] for i in generator.permutation(len(batches))]
        if batches:
            widest = max(range(len(batches)), key=lambda i: self._lengths[batches[i][0]])
            batches.insert(0, batches.pop(widest))
        yield from (batches + ([] if self.drop_last else rest))[self._skip :]
