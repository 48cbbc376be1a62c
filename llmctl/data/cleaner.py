"""How is a whole dataset cleaned? Rows one by one, then rows against each other, then written."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmctl.data.cleaning.dedup.sketch import Banding
from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.corpus_rules import EarlierRows, apply_corpus_rules
from llmctl.data.cleaning.pipeline.row_index import RowIndex
from llmctl.data.cleaning.pipeline.workers import clean_chunks
from llmctl.data.formats.columns import validate_format_options
from llmctl.data.io.reader import RawRow, read_rows
from llmctl.data.io.sources import DataSource
from llmctl.data.io.validating_reader import BadRowsError, OnError
from llmctl.errors import ConfigError
from llmctl.types import ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class CleanedDataset:
    """A dataset after all rules, before anything is written."""

    job: CleanJob
    ledger: RowIndex
    relations: dict[str, EarlierRows]
    """By the names of the rules that compare rows."""


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
    """Read a dataset once and apply every rule; what is found lives as long as the block.

    The rows wait on the disk; memory grows by some 350 bytes per row.

    Args:
        folder: where the rows wait, with room for twice the source; the system's folder of
            temporary files where not given.
        workers: processes; `None` takes one per core, and one alone for what is small.

    Raises:
        ConfigError: the source, a column or the format does not exist.
        BadRowsError: rows cannot be read and `on_error` is `fail`, or no row at all can be read.
    """
    validate_format_options(job.columns, job.format)
    near = job.settings.near_duplicates
    bands = Banding.at(near.threshold).bands if near.is_on else 0
    with (
        tempfile.TemporaryDirectory(prefix=".llmctl-clean-", dir=folder) as spool,
        RowIndex(Path(spool), bands, max_kept_errors) as ledger,
    ):
        rows = _rows(source, job, progress)
        with closing(rows), closing(clean_chunks(rows, job, workers)) as chunks:
            for chunk in chunks:
                ledger.add(chunk)
        ledger.finish()
        readable = ledger.is_readable
        if not readable.all() and (on_error == "fail" or not readable.any()):
            error = BadRowsError(ledger.problems, len(readable))
            if not readable.any():
                error.hint = "no row can be read; --column names columns that are called otherwise"
            raise error
        yield CleanedDataset(job, ledger, apply_corpus_rules(ledger, job, progress))


def _rows(
    source: DataSource, job: CleanJob, progress: ProgressCallback
) -> Generator[RawRow, None, None]:
    unseen = set(job.columns.values())
    for row in read_rows(source, progress):
        unseen -= row.value.keys()
        yield row
    if unseen:
        raise ConfigError(
            f"no row has the column {min(unseen)!r}", hint="check the name after --column"
        )
