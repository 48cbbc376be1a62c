"""Data loaders for training and evaluation, on one device or several.

Rows are ordered by whole steps first and cut into micro-batches afterwards: the number of devices
and the micro-batch size do not change which rows a step trains on.
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

ROWS_KEY = "rows"
"""Key of a batch's row numbers."""
TOKENS_KEY = "tokens"
"""Key of a batch's number of tokens, without padding."""

TrainDataset = TokenDataset | PackedDataset | PairDataset
"""Rows of one sample, of several packed samples, or of a chosen and a rejected sample."""

_SHOWN_ROWS = 8
"""Rows that an error message names at most."""
_Row = tuple[int, TokenSequence | tuple[TokenSequence, ...]]


class MicroBatchSampler:
    """A batch sampler: the micro-batches of one device.

    Every step has the same number of micro-batches. Where a step has too few rows, a row is
    repeated without loss, as `~index`.
    """

    def __init__(
        self, batches: LengthGroupedBatchSampler, accumulation: int, process: ProcessInfo
    ) -> None:
        self._batches = batches
        self._process = process
        self.accumulation = accumulation

    def __len__(self) -> int:
        return len(self._batches) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            parts = np.array_split(np.asarray(batch), self.accumulation * self._process.world_size)
            for part in parts[self._process.rank :: self._process.world_size]:
                yield [int(i) for i in part] if len(part) else [~int(batch[0])]

    def set_epoch(self, epoch: int) -> None:
        self._batches.set_epoch(epoch)


class DataLoaders:
    """Builds the data loaders of a trainer.

    Args:
        train, evaluation: rows to train on, and to evaluate on.
        batch_size: rows per step, on all devices together.
        micro_batch_size: rows per forward pass on one device; times `process.world_size` it
            divides `batch_size`.
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
        process: ProcessInfo,
    ) -> None:
        self._train = train
        self._evaluation = evaluation
        self._collate = collate
        self._process = process
        self.micro_batch_size = micro_batch_size
        self.batches = MicroBatchSampler(
            LengthGroupedBatchSampler(train.lengths, batch_size, seed=seed),
            batch_size // (micro_batch_size * process.world_size),
            process,
        )

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row, shape (rows,)."""
        return self._train.lengths

    def describe_rows(self, rows: Sequence[int]) -> str:
        """Return the source locations of rows: `data.jsonl:12, data.jsonl:40`."""
        samples: list[TokenSequence] = []
        for row in rows:
            item = self._train[row]
            samples += item if isinstance(item, tuple) else (item,)
        locations = [f"{sample.origin.file}:{sample.origin.line}" for sample in samples]
        shown = ", ".join(dict.fromkeys(locations[:_SHOWN_ROWS]))
        more = len(locations) - _SHOWN_ROWS
        return shown + (f" and {more} more" if more > 0 else "")

    def collate_rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return a batch of these rows, its tensors only."""
        batch = self._batch([self._train[row] for row in rows])
        return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches) // self.batches.accumulation

    @property
    def has_eval(self) -> bool:
        return self._evaluation is not None and len(self._evaluation) > 0

    def train_loader(self) -> "DataLoader[_Row]":
        return self._loader(self._train, self.batches)

    def eval_loader(self) -> "DataLoader[_Row]":
        """Return the evaluation batches of this device, rows of similar length together."""
        assert self._evaluation is not None
        order = np.argsort(self._evaluation.lengths, kind="stable")
        size = self.micro_batch_size
        batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        # As many for each device: with a sharded model all devices run each forward pass.
        batches += [[~0]] * (-len(batches) % self._process.world_size)
        return self._loader(
            self._evaluation, batches[self._process.rank :: self._process.world_size]
        )

    def _loader(
        self, rows: TrainDataset, batches: MicroBatchSampler | list[list[int]]
    ) -> "DataLoader[_Row]":
        return DataLoader(
            _Numbered(rows),
            batch_sampler=batches,
            collate_fn=self._with_rows,
            # Its own generator: the default one also drives dropout.
            generator=torch.Generator(),
        )

    def _with_rows(self, items: Sequence[_Row]) -> dict[str, Any]:
        return self._batch([item for _, item in items]) | {
            ROWS_KEY: [number for number, _ in items]
        }

    def _batch(self, items: Sequence[TokenSequence | tuple[TokenSequence, ...]]) -> dict[str, Any]:
        return self._collate(items) | {TOKENS_KEY: sum(_tokens(item) for item in items)}


class _Numbered(Dataset[_Row]):
    """Rows with their numbers; `~number` is the row without targets."""

    def __init__(self, rows: TrainDataset) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> _Row:
        if index >= 0:
            return index, self._rows[index]
        row = self._rows[~index]
        if isinstance(row, tuple):
            return ~index, tuple(map(_without_targets, row))
        return ~index, _without_targets(row)


def _tokens(row: TokenSequence | tuple[TokenSequence, ...]) -> int:
    return sum(len(s.ids) for s in row) if isinstance(row, tuple) else len(row.ids)


def _without_targets(sample: TokenSequence) -> TokenSequence:
    return replace(sample, loss_mask=np.zeros_like(sample.loss_mask))
