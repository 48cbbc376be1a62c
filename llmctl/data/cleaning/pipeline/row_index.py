"""The rows of a dataset between reading and writing: a table in memory, the rows on disk."""

import hashlib
import pickle
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.dedup.near_duplicates import SketchFile
from llmctl.data.cleaning.pipeline.chunk import (
    ROW_DTYPE,
    UNREADABLE_CODE,
    ChunkResult,
    RuleCount,
    SpooledRow,
)
from llmctl.data.rows.row_errors import RowErrorLog


class RowIndex:
    """Collects chunks in order; after `finish` returns any row by its index from 0.

    `close` closes its files in `folder`.

    Args:
        folder: an empty folder for its files.
        bands: bands of each sketch; 0 keeps no sketches.
        max_kept_errors: row errors kept for messages; `None` keeps all.
    """

    def __init__(self, folder: Path, bands: int, max_kept_errors: int | None = None) -> None:
        self._path = folder / "rows"
        self._spool = self._path.open("w+b")
        self._contents = (folder / "contents").open("w+b")
        self._tables: list[NDArray[np.void]] = []
        self._offsets: list[NDArray[np.uint64]] = []
        self._end = 0
        self._count = 0
        self.sketches = SketchFile(folder, bands) if bands else None
        self.counts: dict[str, RuleCount] = {}
        self.problems = RowErrorLog(max_kept_errors)
        self.languages: dict[str, int] = {}
        self.formats: set[str] = set()
        self._files: set[str] = set()
        self.rows = np.zeros(0, ROW_DTYPE)
        """Shape (rows,), of type `ROW_DTYPE`; filled by `finish`."""

    def close(self) -> None:
        self._spool.close()
        self._contents.close()
        if self.sketches is not None:
            self.sketches.close()

    def add(self, chunk: ChunkResult) -> None:
        sizes = np.array([len(record) for record in chunk.records], np.uint64)
        self._offsets.append(self._end + np.cumsum(sizes) - sizes)
        self._end += int(sizes.sum())
        self._spool.writelines(chunk.records)
        numbers = [self.languages.setdefault(name, len(self.languages)) for name in chunk.languages]
        chunk.rows["language"] = np.array(numbers, np.uint8)[chunk.rows["language"]]
        self._tables.append(chunk.rows)
        if self.sketches is not None:
            self.sketches.append(chunk.keys, chunk.low_bytes)
        for name, count in chunk.counts.items():
            self.counts.setdefault(name, RuleCount()).add(count, self._count)
        for problem in chunk.problems:
            self.problems(problem)
        chunk.contents.tofile(self._contents)
        self._count += len(chunk.rows)
        self.formats |= chunk.formats
        self._files |= chunk.files

    def finish(self) -> None:
        """End the collection of rows, and make the table."""
        if self._tables:
            self.rows = np.concatenate(self._tables)
            self._starts = np.concatenate(self._offsets)
        self._tables, self._offsets = [], []
        self._spool.flush()
        if self.sketches is not None:
            self.sketches.close()

    @cached_property
    def numbers_rows(self) -> bool:
        """Whether places are row numbers, because one line of JSON holds several rows."""
        lines = self.rows["line"]
        return len(self._files) <= 1 and bool((lines[1:] == lines[:-1]).any())

    def place(self, row: int) -> str:
        """Return the place of a row: its line, with the file if there are several files."""
        if self.numbers_rows:
            return f"row {row + 1}"
        if len(self._files) <= 1:
            return str(self.rows["line"][row])
        origin = self.record(row).origin
        return f"{origin.file}:{origin.line}"

    @property
    def is_readable(self) -> NDArray[np.bool_]:
        """Whether each row could be read, shape (rows,)."""
        found: NDArray[np.bool_] = self.rows["removed_by"] != UNREADABLE_CODE
        return found

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """Whether each row stays after the rules applied so far, shape (rows,)."""
        found: NDArray[np.bool_] = self.rows["removed_by"] == 0
        return found

    def record(self, row: int) -> SpooledRow:
        """Read one row back."""
        self._spool.seek(int(self._starts[row]))
        found = pickle.load(self._spool)
        assert isinstance(found, SpooledRow)
        return found

    def records(self) -> Iterator[SpooledRow]:
        """Read all rows back, in order."""
        # A separate file object, because single rows may be read at the same time.
        with self._path.open("rb") as spool:
            for _ in range(len(self.rows)):
                yield pickle.load(spool)

    def digest(self, rows: NDArray[np.bool_], *, after: bool) -> str:
        """Return the SHA-256 of selected rows in hex, equal to that of `digests.DatasetDigest`.

        Args:
            rows: shape (rows,), the selected rows.
            after: of the cleaned rows, not the original ones.
        """
        found = hashlib.sha256()
        self._contents.seek(0)
        for start in range(0, len(rows), _DIGEST_BATCH):
            selected = rows[start : start + _DIGEST_BATCH]
            keys = np.frombuffer(self._contents.read(32 * len(selected)), np.uint8)
            found.update(keys.reshape(-1, 2, 16)[selected, int(after)].tobytes())
        return found.hexdigest()


_DIGEST_BATCH = 65536
