"""Cleaning of a whole dataset: rules on single rows first, then rules that compare rows."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from llmctl.data.cleaning.dedup.sketch import Banding
from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.corpus_rules import CleanedDataset, apply_corpus_rules
from llmctl.data.cleaning.pipeline.row_index import RowIndex
from llmctl.data.cleaning.pipeline.workers import clean_chunks
from llmctl.data.formats.columns import validate_format_options
from llmctl.data.io.reader import RawRow, read_rows
from llmctl.data.io.sources import DataSource
from llmctl.data.io.validating_reader import BadRowsError, OnError
from llmctl.errors import ConfigError
from llmctl.types import ProgressCallback, ignore_progress


@contextmanager
def clean_dataset(
    source: DataSource,
    job: CleanJob,
    *,
    on_error: OnError = "fail",
    max_kept_errors: int | None = None,
    folder: Path | None = None,
    workers: int | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[CleanedDataset]:
    """Read a dataset once and apply every rule. The result is valid inside the block.

    The rows are spooled to disk; memory grows by about 350 bytes per row.

    Args:
        max_kept_errors: row errors kept for the message; `None` keeps all.
        folder: place of the spooled rows, which take about twice the size of the source; `None`
            takes the system's folder for temporary files.
        workers: processes; `None` takes one per core, and a single one for a small dataset.

    Raises:
        ConfigError: the source, a column or the format does not exist.
        BadRowsError: rows cannot be read and `on_error` is `fail`, or no row can be read.
    """
    validate_format_options(job.columns, job.format)
    near = job.settings.near_duplicates
    bands = Banding.for_threshold(near.threshold).bands if near.is_on else 0
    with (
        tempfile.TemporaryDirectory(prefix=".llmctl-clean-", dir=folder) as spool,
        closing(RowIndex(Path(spool), bands, max_kept_errors)) as index,
    ):
        rows = _read_checked(source, job, progress)
        with closing(rows), closing(clean_chunks(rows, job, workers)) as chunks:
            for chunk in chunks:
                index.add(chunk)
        index.finish()
        readable = index.is_readable
        if not readable.all() and (on_error == "fail" or not readable.any()):
            error = BadRowsError(index.problems, len(readable))
            if not readable.any():
                error.hint = "no row can be read; use --column if the columns have other names"
            raise error
        yield apply_corpus_rules(index, job, progress)


def _read_checked(
    source: DataSource, job: CleanJob, progress: ProgressCallback
) -> Generator[RawRow, None, None]:
    """Yield all rows; raise `ConfigError` at the end if no row has a column named by the user."""
    unseen = set(job.columns.values())
    for row in read_rows(source, progress):
        unseen -= row.value.keys()
        yield row
    if unseen:
        raise ConfigError(
            f"no row has the column {min(unseen)!r}", hint="check the name after --column"
        )
