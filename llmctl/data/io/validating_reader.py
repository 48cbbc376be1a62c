"""Which rows of a source are whole, and what is done about the others?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmctl.data.formats.parse import rename_columns
from llmctl.data.io.reader import parse_rows
from llmctl.data.io.sources import DataSource
from llmctl.data.rows.row_errors import DataError, RowError, RowErrorLog
from llmctl.types import Example, ProgressCallback, ignore_progress

OnError = Literal["fail", "skip"]
"""What rows that are not whole mean: that nothing is done, or that they are left out."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read, and what those that cannot be used mean."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of ours -> names in the files, where they differ."""
    format: str | None = None
    """The format of every row; recognised row by row where not given."""
    on_error: OnError = "fail"
    max_kept_errors: int | None = 1000
    """So many are kept to be shown, `None` all; the others are only counted."""


class BadRowsError(DataError):
    """Rows cannot be used, and nobody said to leave them out."""

    def __init__(self, log: RowErrorLog, rows: int) -> None:
        problems = "1 problem" if log.total == 1 else f"{log.total:,} problems"
        super().__init__(
            f"{problems} in {'1 row' if rows == 1 else f'{rows:,} rows'}; nothing was written",
            hint="mend them, or leave these rows out with --on-error skip",
        )
        self.log = log


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A row that is an example, with the columns that are no part of it."""

    value: Mapping[str, object]
    """The row as it stands, its columns named as ours are."""
    example: Example


class ValidatingReader:
    """Reads the whole rows of a source and keeps account of the others.

    Iterate over it once, then call `settle` before anything is put in its place.
    """

    def __init__(
        self, source: DataSource, options: ReadOptions, progress: ProgressCallback = ignore_progress
    ) -> None:
        self._source = source
        self._options = options
        self._progress = progress
        self.log = RowErrorLog(options.max_kept_errors)
        self.rows = 0
        self.bad_rows = 0

    def __iter__(self) -> Iterator[ValidRow]:
        """Yield every whole row in order.

        Raises:
            ConfigError, DataError: as `read_training_data`.
        """
        options = self._options
        found = parse_rows(
            self._source, columns=options.columns, format=options.format, progress=self._progress
        )
        for row, example in found:
            # Some problems are of the file and not of one of its rows.
            self.rows += bool(row.raw)
            if isinstance(example, Example):
                yield ValidRow(rename_columns(row.value, options.columns), example)
            else:
                self.reject(example, is_row=bool(row.raw))

    def reject(self, errors: tuple[RowError, ...], *, is_row: bool = True) -> None:
        """Note that a row cannot be used."""
        self.bad_rows += is_row
        for problem in errors:
            self.log(problem)

    def raise_if_failed(self) -> None:
        """Let a problem be the end of it, where it should be.

        Raises:
            BadRowsError: there are problems, and rows with problems are not to be left out.
        """
        if self.log.total and self._options.on_error == "fail":
            raise BadRowsError(self.log, self.rows)
