"""Raw rows, and the search for a row by its line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from llmctl.data.rows.row_errors import RowError
from llmctl.errors import ConfigError
from llmctl.types import SourceLocation

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file."""

    origin: SourceLocation
    raw: bytes
    """The row's text as UTF-8; for Parquet files and hub datasets, the row as JSON. Empty where the
    error belongs to the file rather than to one row, such as an array that is not closed."""
    value: Mapping[str, object] = field(default_factory=dict)
    """Empty where there are errors."""
    errors: tuple[RowError, ...] = ()
    """Why the row cannot be read."""

    @property
    def extra_lines(self) -> int:
        """Number of lines after the row's first."""
        return self.raw.count(b"\n")


def find_at_line(rows: Iterable[tuple[SourceLocation, int, _Item]], line: int) -> _Item:
    """Return the item of the row at a line of the first file, reading no further than needed.

    Args:
        rows: for each row, its location, its number of further lines, and the item to return.
        line: any line of the row.

    Raises:
        ConfigError: no row is at that line; the hint names the nearest rows.
    """
    file, last = None, 0
    hint = "there are no rows"
    for origin, extra_lines, item in rows:
        file = file or origin.file
        if origin.file != file:
            break
        if origin.line > line:
            before = f"rows are at lines {last} and" if last else "the first row is at line"
            hint = f"{before} {origin.line}"
            break
        last = origin.line + extra_lines
        if line <= last:
            return item
        hint = f"the last row is at line {last}"
    raise ConfigError(f"no row is at line {line}", hint=hint)
