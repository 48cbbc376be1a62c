"""Detection of duplicate rows, contradicting answers, and prompts shared by train and eval."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.digests import answer_key, content_key, prompt_key
from llmctl.types import Example, SourceLocation

_MAX_CLUSTERS = 3
_MAX_ROWS = 5

Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DuplicateGroups:
    """The number of rows in clusters, and the largest clusters."""

    rows: int
    clusters: int
    largest: tuple[tuple[SourceLocation, ...], ...]
    """The first rows of the largest clusters."""


class OverlapIndex:
    """The content, prompt and answer of each row as 8-byte keys: about 30 bytes per row.

    The probability that any two of a million different rows collide is about 3e-8.
    """

    def __init__(self) -> None:
        self._files: list[str] = []
        self._content = array("Q")
        self._prompt = array("Q")
        self._answer = array("Q")
        self._file = array("L")
        self._line = array("Q")
        self._comparable = array("b")

    def add(self, example: Example) -> None:
        """Add one row."""
        origin = example.origin
        if not self._files or self._files[-1] != origin.file:
            self._files.append(origin.file)
        self._file.append(len(self._files) - 1)
        self._line.append(origin.line)
        self._content.append(_to_uint64(content_key(example)))
        self._prompt.append(_to_uint64(prompt_key(example)))
        self._answer.append(_to_uint64(answer_key(example)))
        # Plain text has no prompt; pairs have two answers; other tools may lead to other answers.
        self._comparable.append(not (example.text or example.rejected or example.tools))

    def duplicates(self) -> DuplicateGroups:
        """Return the rows with exactly the content of an earlier row."""
        groups = list(_groups(_keys(self._content)))
        return self._duplicate_groups(groups, rows=sum(len(group) - 1 for group in groups))

    def contradictions(self) -> DuplicateGroups:
        """Return the rows with the same prompt and different answers."""
        flags = np.array(self._comparable, dtype=np.bool_)
        comparable = np.flatnonzero(flags)
        answers = _keys(self._answer)
        groups = [
            comparable[group]
            for group in _groups(_keys(self._prompt)[comparable])
            if len(np.unique(answers[comparable[group]])) > 1
        ]
        return self._duplicate_groups(groups, rows=sum(map(len, groups)))

    def leaks_into(self, other: "OverlapIndex") -> DuplicateGroups:
        """Return the rows of `other` whose prompt is in this index, each with its first match."""
        own, others = _keys(self._prompt), _keys(other._prompt)
        known, first = np.unique(own, return_index=True)
        leaked = np.flatnonzero(np.isin(others, known))
        shown = tuple(
            (other._origin(row), self._origin(int(first[np.searchsorted(known, others[row])])))
            for row in leaked[:_MAX_CLUSTERS]
        )
        return DuplicateGroups(len(leaked), len(np.unique(others[leaked])), shown)

    def _duplicate_groups(self, groups: list[NDArray[np.int64]], rows: int) -> DuplicateGroups:
        largest = sorted(groups, key=lambda group: (-len(group), int(group[0])))
        shown = tuple(
            tuple(self._origin(int(row)) for row in group[:_MAX_ROWS])
            for group in largest[:_MAX_CLUSTERS]
        )
        return DuplicateGroups(rows, len(groups), shown)

    def _origin(self, row: int) -> SourceLocation:
        return SourceLocation(self._files[self._file[row]], self._line[row])


def _groups(keys: Keys) -> Iterator[NDArray[np.int64]]:
    """Yield, for each key that occurs more than once, its indexes in ascending order."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    borders = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
    starts = np.concatenate(([0], borders))
    ends = np.concatenate((borders, [len(keys)]))
    for start, end in zip(starts, ends, strict=True):
        if end - start > 1:
            yield order[start:end]


def _keys(values: "array[int]") -> Keys:
    return np.frombuffer(values, np.uint64) if values else _no_rows().astype(np.uint64)


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _to_uint64(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")
