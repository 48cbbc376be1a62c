"""A reader of the valid rows of a source that collects the errors of the others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmctl.data.formats.parse import rename_columns
from llmctl.data.io.reader import parse_rows
from llmctl.data.io.sources import DataSource
from llmctl.data.rows.row_errors import DataError, RowError, RowErrorLog
from llmctl.types import Example, ProgressCallback, ignore_progress

OnError = Literal["fail", "skip"]
"""What to do about invalid rows: `fail` writes nothing, `skip` leaves them out."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read, and what to do about invalid ones."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Canonical names -> names in the files, where they differ."""
    format: str | None = None
    """The format of every row; detected row by row if not given."""
    on_error: OnError = "fail"
    max_kept_errors: int | None = 1000
    """The most errors to keep for display, `None` for all; the others are only counted."""


class BadRowsError(DataError):
    """Rows are invalid, and `on_error` is `fail`."""

    def __init__(self, log: RowErrorLog, rows: int) -> None:
        errors = "1 error" if log.total == 1 else f"{log.total:,} errors"
        super().__init__(
            f"{errors} in {'1 row' if rows == 1 else f'{rows:,} rows'}; nothing was written",
            hint="fix them, or leave these rows out with --on-error skip",
        )
        self.log = log


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A row that is an example, with all its columns."""

    value: Mapping[str, object]
    """The row with its columns under their canonical names."""
    example: Example


class ValidatingReader:
    """Reads the valid rows of a source and collects the errors of the others.

    Iterate over it once, then call `raise_if_failed` before the output replaces a file.
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
        """Yield every valid row in order.

        Raises:
            ConfigError, DataError: as `read_rows`.
        """
        options = self._options
        found = parse_rows(
            self._source, columns=options.columns, format=options.format, progress=self._progress
        )
        for row, example in found:
            # Some errors belong to the file rather than to one of its rows.
            self.rows += bool(row.raw)
            if isinstance(example, Example):
                yield ValidRow(rename_columns(row.value, options.columns), example)
            else:
                self.reject(example, is_row=bool(row.raw))

    def reject(self, errors: tuple[RowError, ...], *, is_row: bool = True) -> None:
        """Count a row as invalid and log its errors."""
        self.bad_rows += is_row
        for problem in errors:
            self.log(problem)

    def raise_if_failed(self) -> None:
        """Raise if there are errors and `on_error` is `fail`.

        Raises:
            BadRowsError: with the log of all errors.
        """
        if self.log.total and self._options.on_error == "fail":
            raise BadRowsError(self.log, self.rows)
