"""Writes the rows of any source in one format."""

from dataclasses import dataclass
from pathlib import Path

from llmctl.data.formats.columns import check_names
from llmctl.data.formats.render import from_example
from llmctl.data.io.sources import Source, refuse_inside
from llmctl.data.io.validating_reader import Intake, ReadOptions
from llmctl.data.io.writer import RowWriter
from llmctl.data.rows.row_errors import ProblemLog
from llmctl.types import ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class Written:
    """What was read, and where it went."""

    rows: int
    bad_rows: int
    """Left out, each with its problems in `log`."""
    files: tuple[tuple[Path, int], ...]
    """Each with the number of its rows."""
    log: ProblemLog


def convert(
    source: Source,
    to: str,
    output: Path,
    *,
    options: ReadOptions,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> Written:
    """Write every row in the format `to`, one of `FORMATS`; columns that no format has are lost.

    A row that the format cannot hold is a problem of that row.

    Raises:
        BadRowsError: there are problems and `options.on_error` is `fail`; nothing is written.
        ConfigError, DataError: as `read_rows` and `RowWriter`.
    """
    check_names(None, to)
    refuse_inside(source, output)
    intake = Intake(source, options, progress)
    with RowWriter(output, overwrite=overwrite) as writer:
        for row in intake:
            value = from_example(row.example, to)
            if isinstance(value, dict):
                writer.write(value)
            else:
                intake.refuse(value)
        intake.settle()
    return Written(intake.rows, intake.bad_rows, ((output, writer.rows),), intake.log)
