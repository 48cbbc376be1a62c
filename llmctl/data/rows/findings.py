"""Collects what is wrong with one row, under the names and on the lines that the person sees."""

import difflib
from collections.abc import Iterable, Mapping

from llmctl.data.rows.json_text import line_offset
from llmctl.data.rows.row import RawRow
from llmctl.data.rows.row_errors import FieldPath, RowError, format_field_path
from llmctl.types import SourceLocation

_LONGEST_NAME = 30


class RowErrorCollector:
    """The problems of one row.

    Args:
        columns: names of ours -> names in the file, where they differ.
    """

    def __init__(self, row: RawRow, columns: Mapping[str, str]) -> None:
        self._row = row
        self._columns = columns
        self.errors: list[RowError] = []

    def add(self, kind: str, path: FieldPath, what: str, fix: str = "") -> None:
        """Note one problem; `path` is in our names."""
        if path and isinstance(path[0], str):
            path = (self._columns.get(path[0], path[0]), *path[1:])
        origin = SourceLocation(
            self._row.origin.file, self._row.origin.line + self._lines_below(path)
        )
        self.errors.append(RowError(origin, kind, what, fix, format_field_path(path)))

    def _lines_below(self, path: FieldPath) -> int:
        raw = self._row.raw
        if b"\n" not in raw or not raw.startswith(b"{"):
            return 0
        try:
            return line_offset(raw.decode(), path)
        except (ValueError, IndexError):  # a table's row that begins like JSON
            return 0


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.8) -> str | None:
    """Return the known name that is most like this one, if any is like it.

    Args:
        likeness: from 0 to 1, as `difflib` measures it, that is enough.
    """
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[near[0]] if near else None


def join_names(names: Iterable[str], most: int = 8) -> str:
    """Write names as a list that stays short."""
    names = [name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…" for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
