"""Packing: several samples in one row of a batch, to avoid padding."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from llmctl.data.dataset import TokenDataset, TokenSequence
from llmctl.errors import ConfigError


def pack_best_fit(lengths: NDArray[np.int32], capacity: int) -> list[list[int]]:
    """Assign samples to rows of at most `capacity` tokens; return the sample indices of each row.

    Best-fit decreasing: the longest sample first, each into the fullest row it fits in. It needs
    at most 11/9 of the minimum number of rows, plus 4 (Johnson 1973), and with many short samples
    hardly more than the minimum. Equal lengths always give equal rows.

    Raises:
        ConfigError: a sample is longer than a row.
    """
    if len(lengths) and (longest := int(lengths.max())) > capacity:
        raise ConfigError(
            f"a sample of {longest} tokens does not fit a packed row of {capacity}",
            hint="use rows of at least max_length tokens",
        )
    rows: list[list[int]] = []
    rows_by_space: dict[int, list[int]] = {}
    """Rows by their free space in tokens."""
    spaces: list[int] = []
    """The keys of `rows_by_space`, sorted."""
    for index in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[index])
        position = bisect_left(spaces, length)
        if position == len(spaces):
            space, row = capacity, len(rows)
            rows.append([])
        else:
            space = spaces[position]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                del rows_by_space[space]
                del spaces[position]
        rows[row].append(index)
        left = space - length
        if left not in rows_by_space:
            rows_by_space[left] = []
            insort(spaces, left)
        rows_by_space[left].append(row)
    return rows


class PackedDataset:
    """A map-style dataset whose items are tuples of samples packed into one row."""

    def __init__(self, samples: TokenDataset, capacity: int) -> None:
        self._samples = samples
        self._rows = pack_best_fit(samples.lengths, capacity)
        self.lengths: NDArray[np.int32] = np.array(
            [samples.lengths[row].sum() for row in self._rows], dtype=np.int32
        )
        """Tokens per row, shape (len,)."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[TokenSequence, ...]:
        return tuple(self._samples[i] for i in self._rows[index])
