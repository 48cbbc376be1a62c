"""Errors found in rows: what is wrong, where, and how to fix it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llmctl.data.rows.json_text import FieldPath, format_field_path, line_offset
from llmctl.errors import LlmctlError
from llmctl.types import SourceLocation

_MAX_NAME = 30
_MAX_NAMES = 8


class DataError(LlmctlError):
    """Files of examples cannot be used as they are."""

    http_status = 400


@dataclass(frozen=True, slots=True)
class RowError:
    """One error in one row, with enough detail to fix it. A value, not an exception."""

    origin: SourceLocation
    """The line of the error itself; in an indented file it may be below the row's first line."""
    kind: str
    """A short name to count by, such as `unknown-role`."""
    what: str
    """What is wrong."""
    fix: str = ""
    """What would be right."""
    field: str = ""
    """`messages[2].role`, or `column 17` of text that is not JSON."""

    def __str__(self) -> str:
        """Return `file:line:field: what is wrong (what would be right)`."""
        where = f"{self.origin.file}:{self.origin.line}:"
        if self.field:
            where += f"{self.field}:"
        return f"{where} {self.what} ({self.fix})" if self.fix else f"{where} {self.what}"


OnRowError = Callable[[RowError], None]


class RowErrorLog:
    """Counts row errors by kind and keeps the first ones; pass it as `on_row_error`.

    Args:
        keep: the most errors to keep; `None` keeps all. The others are only counted.
    """

    def __init__(self, keep: int | None = None) -> None:
        self._keep = keep
        self.first: list[RowError] = []
        self.kinds: Counter[str] = Counter()

    def __call__(self, error: RowError) -> None:
        self.kinds[error.kind] += 1
        if self._keep is None or len(self.first) < self._keep:
            self.first.append(error)

    def extend(self, other: "RowErrorLog") -> None:
        """Add the errors and counts of another log."""
        left = None if self._keep is None else max(0, self._keep - len(self.first))
        self.first += other.first[:left]
        self.kinds += other.kinds

    @property
    def total(self) -> int:
        """Number of errors, kept or not."""
        return self.kinds.total()


class RowErrorCollector:
    """Collects the errors of one row, with the column names and lines of its file.

    Args:
        origin: where the row begins.
        raw: the bytes of the row.
        columns: canonical names -> names in the file, where they differ.
    """

    def __init__(self, origin: SourceLocation, raw: bytes, columns: Mapping[str, str]) -> None:
        self._origin = origin
        self._raw = raw
        self._columns = columns
        self.errors: list[RowError] = []

    @property
    def is_table(self) -> bool:
        """Whether the row is of a CSV file, whose rows are no JSON."""
        return not self._raw.startswith(b"{")

    def add(self, kind: str, path: FieldPath, what: str, fix: str = "") -> None:
        """Add one error; `path` has canonical column names."""
        if path and isinstance(path[0], str):
            path = (self._columns.get(path[0], path[0]), *path[1:])
        origin = SourceLocation(self._origin.file, self._origin.line + self._line_offset(path))
        self.errors.append(RowError(origin, kind, what, fix, format_field_path(path)))

    def _line_offset(self, path: FieldPath) -> int:
        if b"\n" not in self._raw or not self._raw.startswith(b"{"):
            return 0
        try:
            return line_offset(self._raw.decode(), path)
        except (ValueError, IndexError):  # a table's row that begins like JSON
            return 0


def join_names(names: Iterable[str]) -> str:
    """Join names into a list that stays short: long names and long lists are cut."""
    names = [name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…" for name in names]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
