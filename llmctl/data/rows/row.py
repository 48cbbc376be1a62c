"""What is one row as it stands in its file, and which row stands at a line?"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from llmctl.data.rows.row_errors import RowError
from llmctl.errors import ConfigError
from llmctl.types import SourceLocation

_Any = TypeVar("_Any")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file."""

    origin: SourceLocation
    raw: bytes
    """As it is in the file; the row of a Parquet file or a hub's dataset as JSON. Empty where the
    problem is not one of a row, such as an array that is not closed."""
    value: Mapping[str, object] = field(default_factory=dict)
    """Empty where there are problems."""
    errors: tuple[RowError, ...] = ()
    """Why the row cannot be read."""

    @property
    def lines_below(self) -> int:
        """How many lines it has below its first."""
        return self.raw.count(b"\n")


def find_at_line(rows: Iterable[tuple[SourceLocation, int, _Any]], line: int) -> _Any:
    """Return what stands at a line of the first of several files, and look no further.

    Args:
        rows: where each row begins, how many lines it has below that one, and what to return.
        line: any line of the row.

    Raises:
        ConfigError: no row is at that line; the hint names the nearest ones.
    """
    file, last = None, 0
    hint = "there are no rows"
    for origin, below, found in rows:
        file = file or origin.file
        if origin.file != file:
            break
        if origin.line > line:
            before = f"rows are at lines {last} and" if last else "the first row is at line"
            hint = f"{before} {origin.line}"
            break
        last = origin.line + below
        if line <= last:
            return found
        hint = f"the last row is at line {last}"
    raise ConfigError(f"no row is at line {line}", hint=hint)
