"""Which rows say the same, ask the same, or are in both train and eval?"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.digests import answer_key, content_key, prompt_key
from llmctl.types import Example, SourceLocation

_SHOWN_CLUSTERS = 3
_SHOWN_ROWS = 5

Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DuplicateGroups:
    """Rows that belong together, counted, and the largest clusters of them."""

    rows: int
    clusters: int
    largest: tuple[tuple[SourceLocation, ...], ...]
    """The first rows of the largest clusters."""


class OverlapIndex:
    """What each row says, asks and answers as 8-byte keys: some 30 bytes per row.

    Two of a million rows are taken for the same by chance once in thirty million such files.
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self._content = array("Q")
        self._prompt = array("Q")
        self._answer = array("Q")
        self._file = array("L")
        self._line = array("Q")
        self._asks = array("b")

    def add(self, example: Example) -> None:
        """Take in one row."""
        origin = example.origin
        if not self._files or self._files[-1] != origin.file:
            self._files.append(origin.file)
        self._file.append(len(self._files) - 1)
        self._line.append(origin.line)
        self._content.append(_short(content_key(example)))
        self._prompt.append(_short(prompt_key(example)))
        self._answer.append(_short(answer_key(example)))
        # Plain text asks nothing; a pair answers twice by its nature, and other tools otherwise.
        self._asks.append(not (example.text or example.rejected or example.tools))

    def duplicates(self) -> DuplicateGroups:
        """Return the rows that say what an earlier row says, to the letter."""
        groups = list(_groups(_keys(self._content)))
        return self._repeats(groups, rows=sum(len(group) - 1 for group in groups))

    def contradictions(self) -> DuplicateGroups:
        """Return the rows that ask the same and answer differently."""
        asks = np.flatnonzero(np.frombuffer(self._asks, np.int8)) if self._asks else _none()
        answers = _keys(self._answer)
        groups = [
            asks[group]
            for group in _groups(_keys(self._prompt)[asks])
            if len(np.unique(answers[asks[group]])) > 1
        ]
        return self._repeats(groups, rows=sum(map(len, groups)))

    def leaks_into(self, other: "OverlapIndex") -> DuplicateGroups:
        """Return the rows of `other` whose prompt is here too; a cluster is one with its twin."""
        mine, theirs = _keys(self._prompt), _keys(other._prompt)
        known, first = np.unique(mine, return_index=True)
        leaked = np.flatnonzero(np.isin(theirs, known))
        shown = tuple(
            (other._origin(row), self._origin(int(first[np.searchsorted(known, theirs[row])])))
            for row in leaked[:_SHOWN_CLUSTERS]
        )
        return DuplicateGroups(len(leaked), len(np.unique(theirs[leaked])), shown)

    def _repeats(self, groups: list[NDArray[np.int64]], rows: int) -> DuplicateGroups:
        largest = sorted(groups, key=lambda group: (-len(group), int(group[0])))
        shown = tuple(
            tuple(self._origin(int(row)) for row in group[:_SHOWN_ROWS])
            for group in largest[:_SHOWN_CLUSTERS]
        )
        return DuplicateGroups(rows, len(groups), shown)

    def _origin(self, row: int) -> SourceLocation:
        return SourceLocation(self._files[self._file[row]], self._line[row])


def _groups(keys: Keys) -> Iterator[NDArray[np.int64]]:
    """Yield the indexes of keys that are there more than once, key by key, in rising order."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    borders = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
    starts = np.concatenate(([0], borders))
    ends = np.concatenate((borders, [len(keys)]))
    for start, end in zip(starts, ends, strict=True):
        if end - start > 1:
            yield order[start:end]


def _keys(values: "array[int]") -> Keys:
    return np.frombuffer(values, np.uint64) if values else _none().astype(np.uint64)


def _none() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _short(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")
