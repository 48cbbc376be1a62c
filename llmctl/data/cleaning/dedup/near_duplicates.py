"""Near duplicates: rows that differ little from an earlier row which is kept.

Sketches propose candidates by locality-sensitive hashing; every candidate is then compared exactly.
"""

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
"""A pair whose estimated similarity is this far below the threshold is not compared.

The estimate of a similarity of 0.8 by 128 values has a standard deviation of 0.035."""
_MAX_BUCKET_ROWS = 64
_MAX_COMPARISONS = 64
"""Maximum number of exact comparisons per row, most similar candidates first. Without a limit,
thousands of rows with the same boilerplate would all be compared with each other."""
_CACHED_ROWS = 64
"""Number of prepared rows kept for the next comparisons."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A row and the earlier, kept row that it nearly repeats."""

    row: int
    earlier: int
    similarity: float


class SketchFile:
    """The sketches of all rows, in files, so that memory does not grow with the rows."""

    def __init__(self, folder: Path, bands: int) -> None:
        self._bands = bands
        self._keys_path = folder / "band-keys"
        self._bytes_path = folder / "signature-bytes"
        self._keys = self._keys_path.open("wb")
        self._bytes = self._bytes_path.open("wb")
        self._blocks: list[int] = []
        """Number of rows in each block."""

    def append(self, keys: NDArray[np.uint32], low_bytes: NDArray[np.uint8]) -> None:
        """Add rows: shapes (rows, bands) and (rows, PERMUTATIONS)."""
        # Stored by band, so that one band of all rows can be read without the others.
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
        """Memory-map the low bytes of all signatures, shape (rows, PERMUTATIONS)."""
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
    """Yield every near duplicate of an earlier row, in order of the rows.

    Rows are only compared with earlier rows that stay. So a chain of small changes does not remove
    rows with little in common, and a second run over the remaining rows finds nothing.

    Args:
        sketches: the sketches of all rows.
        bands: number of bands of each sketch.
        alive: shape (rows,); other rows are left out.
        comparable: returns the row with an index.
        threshold: Jaccard similarity from which two rows are near duplicates.
    """
    buckets = _Buckets(sketches, bands, alive)
    low_bytes = sketches.low_bytes()
    cached = lru_cache(maxsize=_CACHED_ROWS)(comparable)
    for place in range(len(buckets.rows)):
        if place % 256 == 0:
            progress(Progress("comparing rows", place, len(buckets.rows)))
        row = int(buckets.rows[place])
        candidates = buckets.before(place)
        near = None
        if len(candidates):
            estimate = estimate_similarity(low_bytes[row], low_bytes[candidates])
            likely = np.flatnonzero(estimate >= threshold - _MARGIN)
            order = likely[np.argsort(-estimate[likely], kind="stable")][:_MAX_COMPARISONS]
            near = _first_similar(row, candidates[order], cached, threshold) if len(order) else None
        if near is None:
            buckets.keep(place)
        else:
            yield near


def _first_similar(
    row: int,
    candidates: NDArray[np.int64],
    comparable: Callable[[int], ComparableRow],
    threshold: float,
) -> NearDuplicate | None:
    one = comparable(row)
    for candidate in candidates.tolist():
        similarity = one.similarity(comparable(candidate), threshold)
        if similarity is not None:
            return NearDuplicate(row, candidate, similarity)
    return None


class _Buckets:
    """The buckets of locality-sensitive hashing: rows with the same key of a band.

    A row without a common key is in no bucket. Each bucket holds at most `_MAX_BUCKET_ROWS` kept
    rows.
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
            in_bucket = shared[run]
            number = np.cumsum(shared) - 1 + count
            count += int(shared.sum())
            members.append(indices[order[in_bucket]].astype(np.int32))
            buckets.append(number[run[in_bucket]].astype(np.int32))
            sizes.append(size[shared])
        member = np.concatenate(members) if members else np.zeros(0, np.int32)
        by_row = np.argsort(member, kind="stable")
        self._buckets = np.concatenate(buckets)[by_row] if members else member
        rows, starts = np.unique(member[by_row], return_index=True)
        self.rows: NDArray[np.int32] = rows
        """Rows in any bucket, ascending."""
        self._starts = np.append(starts, len(member))
        capacity = np.minimum(
            np.concatenate(sizes) if sizes else np.zeros(0, np.int64), _MAX_BUCKET_ROWS
        )
        self._ends = np.cumsum(capacity)
        self._kept_starts = self._ends - capacity
        self._filled = self._kept_starts.copy()
        self._kept = np.zeros(int(capacity.sum()), np.int32)

    def before(self, place: int) -> NDArray[np.int64]:
        """Return the kept rows in the buckets of the row `self.rows[place]`."""
        own = self._buckets[self._starts[place] : self._starts[place + 1]]
        begins, ends = self._kept_starts[own].tolist(), self._filled[own].tolist()
        found = [self._kept[b:e] for b, e in zip(begins, ends, strict=True) if e > b]
        return np.unique(np.concatenate(found)).astype(np.int64) if found else _NO_ROWS

    def keep(self, place: int) -> None:
        """Put the row `self.rows[place]` into those of its buckets that are not full."""
        own = self._buckets[self._starts[place] : self._starts[place + 1]]
        own = own[self._filled[own] < self._ends[own]]
        self._kept[self._filled[own]] = self.rows[place]
        self._filled[own] += 1


_NO_ROWS = np.zeros(0, np.int64)
