"""Which rows does a device learn from at which moment, and in which shape?

The order is made of whole steps first, and only then cut into micro-batches: how many devices
share a step, and how many rows each can hold at once, changes nothing of what is learnt in it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from llmctl.data.dataset import PairDataset, TokenDataset, TokenSequence
from llmctl.train.data.collate import LengthGroupedBatchSampler
from llmctl.train.data.packing import PackedDataset
from llmctl.train.distributed import ProcessInfo
from llmctl.types import SourceLocation

ROWS_KEY = "rows"
"""Key under which a batch names the rows it is made of."""
TOKENS_KEY = "tokens"
"""Key under which a batch says how many tokens it has besides padding."""

TrainDataset = TokenDataset | PackedDataset | PairDataset
"""Rows of one sample, of several behind one another, or of a better and a worse one."""

_Row = tuple[int, TokenSequence | tuple[TokenSequence, ...]]


class MicroBatchSampler:
    """A batch sampler: the part of one device, micro-batch by micro-batch.

    Every step has the same number of them. Where its rows do not suffice, a row is given again
    without loss, as `~index`.
    """

    def __init__(
        self, batches: LengthGroupedBatchSampler, accumulation: int, share: ProcessInfo
    ) -> None:
        self._batches = batches
        self._share = share
        self.accumulation = accumulation

    def __len__(self) -> int:
        return len(self._batches) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            parts = np.array_split(np.asarray(batch), self.accumulation * self._share.world)
            for part in parts[self._share.rank :: self._share.world]:
                yield [int(i) for i in part] if len(part) else [~int(batch[0])]

    def set_epoch(self, epoch: int) -> None:
        self._batches.set_epoch(epoch)


class DataLoaders:
    """Hands a trainer its batches.

    Args:
        train, evaluation: rows to learn from, and to measure on.
        batch_size: rows per step, on all devices together.
        micro_batch_size: rows that one device holds at once; with `share.world` divides the batch.
    """

    def __init__(
        self,
        train: TrainDataset,
        evaluation: TokenDataset | PairDataset | None,
        collate: Callable[[Any], dict[str, Any]],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        share: ProcessInfo,
    ) -> None:
        self._train = train
        self._evaluation = evaluation
        self._collate = collate
        self._share = share
        self.micro_batch_size = micro_batch_size
        self.batches = MicroBatchSampler(
            LengthGroupedBatchSampler(train.lengths, batch_size, seed=seed),
            batch_size // (micro_batch_size * share.world),
            share,
        )

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, shape (rows,)."""
        return self._train.lengths

    def origins(self, row: int) -> list[SourceLocation]:
        """Return where a row was read; a packed one is made of several."""
        item = self._train[row]
        return [sample.origin for sample in (item if isinstance(item, tuple) else (item,))]

    def collate_rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return a batch of these rows, of tensors alone."""
        batch = self._batch([self._train[row] for row in rows])
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches) // self.batches.accumulation

    @property
    def measures(self) -> bool:
        return self._evaluation is not None and len(self._evaluation) > 0

    def train_loader(self) -> "DataLoader[_Row]":
        return self._loader(self._train, self.batches)

    def eval_loader(self) -> "DataLoader[_Row]":
        """Yield this device's share of what is held out, rows of similar length together."""
        assert self._evaluation is not None
        order = np.argsort(self._evaluation.lengths, kind="stable")
        size = self.micro_batch_size
        batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        # As many for each device: where the model is shared out, none can go on alone.
        batches += [[~0]] * (-len(batches) % self._share.world)
        return self._loader(self._evaluation, batches[self._share.rank :: self._share.world])

    def _loader(
        self, rows: TrainDataset, batches: MicroBatchSampler | list[list[int]]
    ) -> "DataLoader[_Row]":
        return DataLoader(
            _Numbered(rows),
            batch_sampler=batches,
            collate_fn=self._with_rows,
            # The loader's own: it would draw from the one that dropout draws from.
            generator=torch.Generator(),
        )

    def _with_rows(self, items: Sequence[_Row]) -> dict[str, Any]:
        return self._batch([item for _, item in items]) | {
            ROWS_KEY: [number for number, _ in items]
        }

    def _batch(self, items: Sequence[TokenSequence | tuple[TokenSequence, ...]]) -> dict[str, Any]:
        batch = self._collate(items)
        # Padding is on the right, where no causal model looks: without a mask its attention may
        # take the fast way, and what it makes of the padding carries no label.
        batch.pop("attention_mask", None)
        return batch | {TOKENS_KEY: sum(_tokens(item) for item in items)}


class _Numbered(Dataset[_Row]):
    """Rows with their numbers; `~number` is the row without anything to learn."""

    def __init__(self, rows: TrainDataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> _Row:
        if index >= 0:
            return index, self._rows[index]
        row = self._rows[~index]
        silent = tuple(map(_silent, row)) if isinstance(row, tuple) else _silent(row)
        return ~index, silent


def _tokens(row: TokenSequence | tuple[TokenSequence, ...]) -> int:
    return sum(len(s.ids) for s in row) if isinstance(row, tuple) else len(row.ids)


def _silent(sample: TokenSequence) -> TokenSequence:
    return replace(sample, loss_mask=np.zeros_like(sample.loss_mask))
