"""Joins sources, each with its weight, into one file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.formats.columns import check_names
from llmctl.data.formats.render import from_example
from llmctl.data.io.sources import refuse_inside
from llmctl.data.io.validating_reader import BadRowsError, Intake, ReadOptions
from llmctl.data.io.writer import RowWriter
from llmctl.data.operations.convert import Written
from llmctl.data.operations.split import place
from llmctl.data.rows.digests import content_key
from llmctl.data.rows.row_errors import ProblemLog
from llmctl.errors import ConfigError
from llmctl.types import ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class Weighted:
    """A source, and how often each of its rows is written."""

    source: str
    weight: float = 1.0
    """2 writes every row twice, 0.5 about every second one."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1000:
            raise ConfigError(
                f"the weight of {self.source} is {self.weight}",
                hint="above 0, up to 1000; 2 writes every row twice, 0.5 every second one",
            )


def merge(
    sources: Sequence[Weighted],
    output: Path,
    *,
    to: str | None = None,
    seed: int = 0,
    options: ReadOptions,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> Written:
    """Write the rows of all sources one source after the other, each as often as it weighs.

    Which rows a broken weight writes once more follows from their content and the seed alone.

    Args:
        to: the format of all rows; each as it is, with all its columns, where not given.

    Raises:
        BadRowsError: there are problems and `options.on_error` is `fail`; nothing is written.
        ConfigError, DataError: as `read_rows` and `RowWriter`.
    """
    check_names(None, to)
    refuse_inside([part.source for part in sources], output)
    rows = bad_rows = 0
    log = ProblemLog(options.keep_problems)
    with RowWriter(output, overwrite=overwrite) as writer:
        for part in sources:
            intake = Intake(part.source, options, progress)
            for row in intake:
                value = row.value if to is None else from_example(row.example, to)
                if isinstance(value, tuple):
                    intake.refuse(value)
                    continue
                whole, rest = divmod(part.weight, 1)
                again = place(content_key(row.example), seed) < rest
                for _ in range(int(whole) + again):
                    writer.write(value)
            rows, bad_rows = rows + intake.rows, bad_rows + intake.bad_rows
            log.absorb(intake.log)
        if log.total and options.on_error == "fail":
            raise BadRowsError(log, rows)
    return Written(rows, bad_rows, ((output, writer.rows),), log)
