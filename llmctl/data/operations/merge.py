"""Merging of weighted sources into one file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.digests import content_key, uniform_hash
from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.render import render_example
from llmctl.data.io.sources import refuse_output_in_source
from llmctl.data.io.validating_reader import BadRowsError, ReadOptions, ValidatingReader
from llmctl.data.io.writer import RowWriter
from llmctl.data.operations.convert import WriteSummary
from llmctl.data.rows.row_errors import RowErrorLog
from llmctl.errors import ConfigError
from llmctl.types import ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class WeightedSource:
    """A source, with how often each of its rows is written."""

    source: str
    weight: float = 1.0
    """2 writes every row twice, 0.5 about half of the rows."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1000:
            raise ConfigError(
                f"the weight of {self.source} is {self.weight}",
                hint="above 0, up to 1000; 2 writes every row twice, 0.5 about half of the rows",
            )


def merge_sources(
    sources: Sequence[WeightedSource],
    output: Path,
    *,
    to: str | None = None,
    seed: int = 0,
    options: ReadOptions,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> WriteSummary:
    """Write the rows of all sources, one source after the other, each as often as its weight says.

    The rows that the fraction of a weight repeats depend on their content and the seed alone.

    Args:
        to: the format of all rows; if not given, rows keep their format and all columns.

    Raises:
        BadRowsError: rows are invalid and `options.on_error` is `fail`; nothing is written.
        ConfigError, DataError: as `read_rows` and `RowWriter`.
    """
    validate_format_options(None, to)
    refuse_output_in_source([weighted.source for weighted in sources], output)
    rows = bad_rows = 0
    log = RowErrorLog(options.max_kept_errors)
    with RowWriter(output, overwrite=overwrite) as writer:
        for weighted in sources:
            reader = ValidatingReader(weighted.source, options, progress)
            for row in reader:
                value = row.value if to is None else render_example(row.example, to)
                if isinstance(value, tuple):
                    reader.reject(value)
                    continue
                times, rest = divmod(weighted.weight, 1)
                times += uniform_hash(content_key(row.example), seed) < rest
                for _ in range(int(times)):
                    writer.write(value)
            rows, bad_rows = rows + reader.rows, bad_rows + reader.bad_rows
            log.extend(reader.log)
        if log.total and options.on_error == "fail":
            raise BadRowsError(log, rows)
    return WriteSummary(rows, bad_rows, ((output, writer.rows),), log)
