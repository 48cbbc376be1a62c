"""Conversion of the rows of a source to one format."""

from dataclasses import dataclass
from pathlib import Path

from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.render import render_example
from llmctl.data.io.sources import DataSource, refuse_output_in_source
from llmctl.data.io.validating_reader import ReadOptions, ValidatingReader
from llmctl.data.io.writer import RowWriter
from llmctl.data.rows.row_errors import RowErrorLog
from llmctl.types import ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class WriteSummary:
    """The rows read and the files written."""

    rows: int
    bad_rows: int
    """Rows left out, with their errors in `log`."""
    files: tuple[tuple[Path, int], ...]
    """Each file with its number of rows."""
    log: RowErrorLog


def convert_rows(
    source: DataSource,
    to: str,
    output: Path,
    *,
    options: ReadOptions,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> WriteSummary:
    """Write every row in the format `to`, one of `FORMATS`; columns outside the format are dropped.

    A row that the format cannot represent is an invalid row.

    Raises:
        BadRowsError: rows are invalid and `options.on_error` is `fail`; nothing is written.
        ConfigError, DataError: as `read_rows` and `RowWriter`.
    """
    validate_format_options(None, to)
    refuse_output_in_source(source, output)
    reader = ValidatingReader(source, options, progress)
    with RowWriter(output, overwrite=overwrite) as writer:
        for row in reader:
            value = render_example(row.example, to)
            if isinstance(value, dict):
                writer.write(value)
            else:
                reader.reject(value)
        reader.raise_if_failed()
    return WriteSummary(reader.rows, reader.bad_rows, ((output, writer.rows),), reader.log)
