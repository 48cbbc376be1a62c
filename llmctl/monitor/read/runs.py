"""Reading of stored runs, and resolution of references to runs.

A SQLite store with a known schema is read directly (`sqlite`, milliseconds), any other through
MLflow's client (`client`, seconds). A missing store has no runs, and reading does not create it.
Spools of killed commands are delivered first.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.read.record import RunReader
from llmctl.monitor.read.sqlite import SqliteRunReader
from llmctl.monitor.store import open_store, redact, sqlite_path, store_uri
from llmctl.monitor.write.spool import orphaned_spools
from llmctl.types import RunRecord

SHORT_ID_CHARS: Final = 8
"""Number of displayed characters of an id."""
LATEST_ALIASES: Final = ("latest", "@")
_MAX_LISTED = 10
_log = logging.getLogger(__name__)


class RunNotFoundError(LlmctlError):
    """No run matches a reference."""

    def __init__(self, reference: str, hint: str, reason: str = "") -> None:
        super().__init__(f"there is no run {reference!r}{reason and f': {reason}'}", hint=hint)
        self.reference = reference


@contextmanager
def open_runs(tracking_uri: str | None = None) -> Iterator[RunReader]:
    """Open the store for reading.

    Args:
        tracking_uri: None takes `MLFLOW_TRACKING_URI`, else SQLite in llmctl's folder.

    Raises:
        ConfigError: the address cannot be used.
        LlmctlError: the store does not answer, or is not a tracking store.
    """
    uri = store_uri(tracking_uri)
    if orphaned_spools(uri):
        from llmctl.monitor.write.recovery import deliver_orphaned_spools

        try:
            deliver_orphaned_spools(open_store(uri), _log.warning)
        except Exception as error:  # they stay on the disk
            _log.info("spools are not delivered: %s", redact(str(error)))
    reader = _reader(uri, sqlite_path(uri))
    try:
        yield reader
    finally:
        reader.close()


def _reader(uri: str, file: Path | None) -> RunReader:
    if file is not None:
        if not file.exists() or not file.stat().st_size:
            return RunReader()
        direct = SqliteRunReader.open(file)
        if direct is not None:
            return direct
    from llmctl.monitor.read.client import ClientRunReader

    return ClientRunReader(uri)


def find_run(runs: Sequence[RunRecord], reference: str) -> RunRecord:
    """Return the run with a reference.

    Args:
        runs: the runs to search, newest first.
        reference: an id, a name, a prefix of either, or `latest` or `@` for the newest run. Exact
            matches have priority over prefixes, ids over names.

    Raises:
        RunNotFoundError: no run matches.
        ConfigError: several runs match; the message lists them.
    """
    if reference in LATEST_ALIASES and runs:
        return runs[0]
    wanted = reference.strip().casefold()
    matches = (
        [run for run in runs if run.run_id == wanted],
        [run for run in runs if run.name.casefold() == wanted],
        [run for run in runs if run.run_id.startswith(wanted)],
        [run for run in runs if run.name.casefold().startswith(wanted)],
    )
    found = next((group for group in matches if group), []) if wanted else []
    if not found:
        if not runs:
            hint = "--tracking-uri or MLFLOW_TRACKING_URI names another store"
            raise RunNotFoundError(reference, hint, "the store holds no runs yet")
        raise RunNotFoundError(reference, "`llmctl runs list --limit 0` lists all runs")
    if len(found) == 1:
        return found[0]
    lines = [_line(run) for run in found[:_MAX_LISTED]]
    if len(found) > _MAX_LISTED:
        lines.append(f"  … and {len(found) - _MAX_LISTED} more")
    raise ConfigError(
        "\n".join([f"{reference!r} matches {len(found)} runs:", *lines]),
        hint="give more of the name, or the id",
    )


def find_runs(
    store: RunReader, references: Sequence[str], *, deleted: bool | None = False
) -> list[RunRecord]:
    """Return the runs with the given references, each once.

    Args:
        store: the store to search.
        references: as for `find_run`.
        deleted: whether to search the trash; None searches both.

    Raises:
        RunNotFoundError: no run matches; the hint tells if one matches in the other place.
        ConfigError: several runs match a reference.
    """
    runs = store.runs(deleted=bool(deleted))
    if deleted is None:
        runs = [*runs, *store.runs(deleted=True)]
    try:
        found = [find_run(runs, reference) for reference in references]
    except RunNotFoundError as error:
        if deleted is None:
            raise
        if deleted:
            hint = "`llmctl runs list --trash` lists the runs in it" if runs else ""
            error = RunNotFoundError(error.reference, hint, "" if runs else "the trash is empty")
        with suppress(LlmctlError):
            run = find_run(store.runs(deleted=not deleted), error.reference)
            error.hint = (
                f"{run.name} is not in the trash"
                if deleted
                else "it is in the trash; use "
                f"`llmctl runs restore {run.run_id[:SHORT_ID_CHARS]}` first"
            )
        raise error from None
    return list({run.run_id: run for run in found}.values())


def _line(run: RunRecord) -> str:
    started = datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")
    shown = run.run_id[: SHORT_ID_CHARS + 4]
    return f"  {shown}  {started}  {run.status:<8}  {run.name}"
