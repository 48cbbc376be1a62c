"""Several samples in one row of a batch, so that little of it is padding."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from llmctl.data.dataset import TokenDataset, TokenSequence
from llmctl.errors import ConfigError


def pack_best_fit(lengths: NDArray[np.int32], capacity: int) -> list[list[int]]:
    """Lay samples into rows of at most `capacity` tokens; return the samples' indices per row.

    Best-fit decreasing: the longest first, each into the fullest row that still has room. It needs
    at most 11/9 of the fewest rows possible, plus 4 (Johnson 1973); with many short samples nearly
    none more. Equal lengths always give equal rows.

    Raises:
        ConfigError: a sample is longer than a row.
    """
    if len(lengths) and (longest := int(lengths.max())) > capacity:
        raise ConfigError(
            f"a sample of {longest} tokens does not fit a packed row of {capacity}",
            hint="let the rows be at least as long as max_length",
        )
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    """Rows by the tokens that they have room for."""
    rooms: list[int] = []
    """The keys of `with_room` in order."""
    for index in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[index])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                del rooms[place]
        rows[row].append(index)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(row)
    return rows


class PackedDataset:
    """A map-style dataset whose items are tuples of samples that together fill a row."""

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
