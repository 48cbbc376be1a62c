"""Which rows are nearly an earlier row?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.dedup.similarity import ComparableRow
from llmctl.data.cleaning.dedup.sketch import PERMUTATIONS, estimate_similarity
from llmctl.types import Progress, ProgressCallback

_MARGIN = 0.15
"""A pair that is this far below the threshold by its sketches is not compared: the estimate of a
similarity of 0.8 by 128 values has a standard deviation of 0.035."""
_PER_BUCKET = 64
_COMPARED = 64
"""Rows that one row is compared with at most, likeliest first. Where thousands of rows fill in the
same form, without a bound each would be compared with each."""
_REMEMBERED = 64
"""Rows taken apart that are kept for the next comparison."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A row that nearly repeats an earlier row which is kept."""

    row: int
    of: int
    likeness: float


class SketchFile:
    """The sketches of all rows in a file, so that memory does not grow with the rows."""

    def __init__(self, folder: Path, bands: int) -> None:
        self._bands = bands
        self._keys_path = folder / "band-keys"
        self._bytes_path = folder / "signature-bytes"
        self._keys = self._keys_path.open("wb")
        self._bytes = self._bytes_path.open("wb")
        self._blocks: list[int] = []
        """Rows of each block."""

    def append(self, keys: NDArray[np.uint32], low_bytes: NDArray[np.uint8]) -> None:
        """Add rows: shapes (rows, bands) and (rows, PERMUTATIONS)."""
        # Band after band, so that one band of all rows can be read without the others.
        np.ascontiguousarray(keys.T).tofile(self._keys)
        low_bytes.tofile(self._bytes)
        self._blocks.append(len(keys))

    def close(self) -> None:
        self._keys.close()
        self._bytes.close()

    def band(self, index: int) -> NDArray[np.uint32]:
        """Return the keys of one band, shape (rows,)."""
        found = np.empty(sum(self._blocks), np.uint32)
        position = start = 0
        with self._keys_path.open("rb") as file:
            for rows in self._blocks:
                file.seek(4 * (start * self._bands + index * rows))
                found[position : position + rows] = np.fromfile(file, np.uint32, rows)
                position += rows
                start += rows
        return found

    def low_bytes(self) -> NDArray[np.uint8]:
        """Map the low bytes of all signatures, shape (rows, PERMUTATIONS)."""
        shape = (sum(self._blocks), PERMUTATIONS)
        if not shape[0]:
            return np.empty(shape, np.uint8)
        return np.memmap(self._bytes_path, np.uint8, "r", shape=shape)


def find_near_duplicates(
    sketches: SketchFile,
    bands: int,
    alive: NDArray[np.bool_],
    comparable: Callable[[int], ComparableRow],
    threshold: float,
    progress: ProgressCallback,
) -> Iterator[NearDuplicate]:
    """Yield every row that is nearly an earlier one which is kept, in order of the rows.

    Each is compared exactly before it is named. Rows are judged in their order and only against
    rows that stay, so that a chain of small changes does not swallow rows that have little in
    common, and a second run over what stays finds nothing.

    Args:
        alive: shape (rows,); other rows are not looked at.
        comparable: the row with an index, to compare it.
    """
    buckets = _Buckets(sketches, bands, alive)
    low_bytes = sketches.low_bytes()
    kept = lru_cache(maxsize=_REMEMBERED)(comparable)
    for place in range(len(buckets.rows)):
        if place % 256 == 0:
            progress(Progress("comparing rows", place, len(buckets.rows)))
        row = int(buckets.rows[place])
        candidates = buckets.before(place)
        found = None
        if len(candidates):
            guess = estimate_similarity(low_bytes[row], low_bytes[candidates])
            likely = np.flatnonzero(guess >= threshold - _MARGIN)
            order = likely[np.argsort(-guess[likely], kind="stable")][:_COMPARED]
            found = _first_alike(row, candidates[order], kept, threshold) if len(order) else None
        if found is None:
            buckets.keep(place)
        else:
            yield found


def _first_alike(
    row: int,
    candidates: NDArray[np.int64],
    comparable: Callable[[int], ComparableRow],
    threshold: float,
) -> NearDuplicate | None:
    one = comparable(row)
    for candidate in candidates.tolist():
        likeness = one.likeness(comparable(candidate), threshold)
        if likeness is not None:
            return NearDuplicate(row, candidate, likeness)
    return None


class _Buckets:
    """Rows that share a band's key, and which of them are kept so far.

    Rows that share no key with any other row are in no bucket.
    """

    def __init__(self, sketches: SketchFile, bands: int, alive: NDArray[np.bool_]) -> None:
        members: list[NDArray[np.int32]] = []
        buckets: list[NDArray[np.int32]] = []
        sizes: list[NDArray[np.int64]] = []
        count = 0
        indices = np.flatnonzero(alive)
        for index in range(bands):
            keys = sketches.band(index)[indices]
            order = np.argsort(keys, kind="stable")
            is_new = np.ones(len(order), bool)
            is_new[1:] = keys[order[1:]] != keys[order[:-1]]
            run = np.cumsum(is_new) - 1
            size = np.bincount(run) if len(run) else np.zeros(0, np.int64)
            shared = size > 1
            inside = shared[run]
            number = np.cumsum(shared) - 1 + count
            count += int(shared.sum())
            members.append(indices[order[inside]].astype(np.int32))
            buckets.append(number[run[inside]].astype(np.int32))
            sizes.append(size[shared])
        member = np.concatenate(members) if members else np.zeros(0, np.int32)
        by_row = np.argsort(member, kind="stable")
        self._buckets = np.concatenate(buckets)[by_row] if members else member
        rows, starts = np.unique(member[by_row], return_index=True)
        self.rows: NDArray[np.int32] = rows
        """Those in any bucket, in order."""
        self._starts = np.append(starts, len(member))
        room = np.minimum(np.concatenate(sizes) if sizes else np.zeros(0, np.int64), _PER_BUCKET)
        self._room_ends = np.cumsum(room)
        self._room_starts = self._room_ends - room
        self._filled = self._room_starts.copy()
        self._kept = np.zeros(int(room.sum()), np.int32)

    def before(self, place: int) -> NDArray[np.int64]:
        """Return the kept rows that share a bucket with the row at a place of `rows`."""
        own = self._buckets[self._starts[place] : self._starts[place + 1]]
        begins, ends = self._room_starts[own].tolist(), self._filled[own].tolist()
        found = [self._kept[b:e] for b, e in zip(begins, ends, strict=True) if e > b]
        return np.unique(np.concatenate(found)).astype(np.int64) if found else _NONE

    def keep(self, place: int) -> None:
        """Put the row at a place of `rows` into its buckets, those that have room."""
        own = self._buckets[self._starts[place] : self._starts[place + 1]]
        own = own[self._filled[own] < self._room_ends[own]]
        self._kept[self._filled[own]] = self.rows[place]
        self._filled[own] += 1


_NONE = np.zeros(0, np.int64)
