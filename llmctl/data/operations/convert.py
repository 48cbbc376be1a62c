"""Writes the rows of any source in one format."""

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
    """What was read, and where it went."""

    rows: int
    bad_rows: int
    """Left out, each with its problems in `log`."""
    files: tuple[tuple[Path, int], ...]
    """Each with the number of its rows."""
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
    """Write every row in the format `to`, one of `FORMATS`; columns that no format has are lost.

    A row that the format cannot hold is a problem of that row.

    Raises:
        BadRowsError: there are problems and `options.on_error` is `fail`; nothing is written.
        ConfigError, DataError: as `read_training_data` and `RowWriter`.
    """
    validate_format_options(None, to)
    refuse_output_in_source(source, output)
    intake = ValidatingReader(source, options, progress)
    with RowWriter(output, overwrite=overwrite) as writer:
        for row in intake:
            value = render_example(row.example, to)
            if isinstance(value, dict):
                writer.write(value)
            else:
                intake.reject(value)
        intake.raise_if_failed()
    return WriteSummary(intake.rows, intake.bad_rows, ((output, writer.rows),), intake.log)
