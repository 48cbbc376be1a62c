"""How are remembered runs read, and which one does a person mean?

A SQLite store whose tables are known is read directly (`run_sqlite`, milliseconds), any other
through MLflow's client (`run_client`, seconds). A store that is not there holds no runs, and is not
made by looking. What killed commands left waiting for the store is delivered first.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.read.sqlite import SqliteRunReader
from llmctl.monitor.store import open_store, sqlite_path, store_uri
from llmctl.monitor.write.spool import orphaned_spools
from llmctl.types import MetricPoint, RunRecord

SHORT_ID_CHARS: Final = 8
"""Characters of an id that a person sees."""
LATEST_ALIASES: Final = ("latest", "@")
_MOST_CANDIDATES = 10
_log = logging.getLogger(__name__)


class RunNotFoundError(LlmctlError):
    """No run is meant by what a person wrote."""

    def __init__(self, reference: str, hint: str, reason: str = "") -> None:
        super().__init__(f"there is no run {reference!r}{reason and f': {reason}'}", hint=hint)
        self.reference = reference


class RunReader(Protocol):
    """The runs of one store. Every method raises `LlmctlError` if the store cannot be read."""

    def runs(self, *, deleted: bool = False) -> list[RunRecord]:
        """Return every run of llmctl, or every one in the trash, newest first."""

    def curves(self, run_id: str) -> dict[str, list[MetricPoint]]:
        """Return every metric's points in the order of their steps."""

    def count_traces(self, run_id: str) -> int:
        """Return how many requests of a server's run are kept."""

    def close(self) -> None: ...


class EmptyRunReader:
    """A store that is not there."""

    def runs(self, *, deleted: bool = False) -> list[RunRecord]:  # noqa: ARG002
        return []

    def curves(self, run_id: str) -> dict[str, list[MetricPoint]]:  # noqa: ARG002
        return {}

    def count_traces(self, run_id: str) -> int:  # noqa: ARG002
        return 0

    def close(self) -> None:
        pass


@contextmanager
def open_runs(tracking_uri: str | None = None) -> Iterator[RunReader]:
    """Open the store to read it.

    Args:
        tracking_uri: None takes `MLFLOW_TRACKING_URI`, else SQLite in llmctl's folder.

    Raises:
        ConfigError: the address cannot be used.
        LlmctlError: the store does not answer, or is none.
    """
    uri = store_uri(tracking_uri)
    reader = _reader(uri, sqlite_path(uri))
    try:
        if orphaned_spools(uri) and not isinstance(reader, EmptyRunReader):
            from llmctl.monitor.write.recovery import deliver_orphaned_spools

            with suppress(Exception):  # what cannot be delivered now waits on
                deliver_orphaned_spools(open_store(uri), _log.warning)
        yield reader
    finally:
        reader.close()


def _reader(uri: str, file: Path | None) -> RunReader:
    if file is not None:
        if not file.exists() or not file.stat().st_size:
            return EmptyRunReader()
        direct = SqliteRunReader.open(file)
        if direct is not None:
            return direct
    from llmctl.monitor.read.client import ClientRunReader

    return ClientRunReader(uri)


def find_run(runs: Sequence[RunRecord], reference: str) -> RunRecord:
    """Return the run that a person means.

    Args:
        runs: to choose among, newest first.
        reference: an id or its beginning, a name or its beginning, `latest` or `@` for the newest.
            A whole id or name goes before a beginning, an id's beginning before a name's.

    Raises:
        RunNotFoundError: there is none.
        ConfigError: there are several; they are named.
    """
    if reference in LATEST_ALIASES and runs:
        return runs[0]
    wanted = reference.strip().casefold()
    tries = (
        [run for run in runs if run.run_id == wanted],
        [run for run in runs if run.name.casefold() == wanted],
        [run for run in runs if run.run_id.startswith(wanted)],
        [run for run in runs if run.name.casefold().startswith(wanted)],
    )
    found = next((some for some in tries if some), []) if wanted else []
    if not found:
        if not runs:
            hint = "--tracking-uri or MLFLOW_TRACKING_URI names another store"
            raise RunNotFoundError(reference, hint, "the store holds no runs yet")
        raise RunNotFoundError(reference, "`llmctl runs list --limit 0` names them all")
    if len(found) == 1:
        return found[0]
    lines = [_line(run) for run in found[:_MOST_CANDIDATES]]
    if len(found) > _MOST_CANDIDATES:
        lines.append(f"  … and {len(found) - _MOST_CANDIDATES} more")
    raise ConfigError(
        "\n".join([f"{reference!r} may be any of {len(found)} runs:", *lines]),
        hint="write more of the name, or the id",
    )


def find_runs(
    store: RunReader, references: Sequence[str], *, deleted: bool | None = False
) -> list[RunRecord]:
    """Return the runs that a person means, each once.

    Args:
        deleted: whether they lie in the trash; None takes both.

    Raises:
        RunNotFoundError: there is none where it was looked for; the hint says if it is elsewhere.
        ConfigError: a reference may be several.
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
            hint = "`llmctl runs list --trash` names what is in it" if runs else ""
            error = RunNotFoundError(error.reference, hint, "" if runs else "the trash is empty")
        with suppress(LlmctlError):
            run = find_run(store.runs(deleted=not deleted), error.reference)
            error.hint = (
                f"{run.name} is not in the trash"
                if deleted
                else f"it is in the trash; "
                f"`llmctl runs restore {run.run_id[:SHORT_ID_CHARS]}` first"
            )
        raise error from None
    return list({run.run_id: run for run in found}.values())


def _line(run: RunRecord) -> str:
    started = datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")
    shown = run.run_id[: SHORT_ID_CHARS + 4]
    return f"  {shown}  {started}  {run.status:<8}  {run.name}"
