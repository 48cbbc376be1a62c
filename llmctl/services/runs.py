"""Service of `llmctl runs`: list, show, compare, plot, export and change stored runs."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor import Tracker, tracked
from llmctl.monitor.read import query
from llmctl.monitor.read.files import RunFile, list_files, write_export
from llmctl.monitor.read.lineage import Lineage, LineageNode
from llmctl.monitor.read.query import (
    MetricDirection,
    MetricSummary,
    RunComparison,
    RunFilter,
    compare_runs,
    summarize_metrics,
)
from llmctl.monitor.read.record import RunReader, run_to_dict
from llmctl.monitor.read.runs import (
    SHORT_ID_CHARS,
    RunNotFoundError,
    find_run,
    find_runs,
    open_runs,
)
from llmctl.monitor.store import URI_VARIABLE, redact, sqlite_path, store_uri
from llmctl.monitor.write import spool
from llmctl.monitor.write.sanitize import check_tag
from llmctl.types import TAG_NOTE, MetricPoint, RunRecord

_RESERVED = ("llmctl.", "mlflow.")


@dataclass(frozen=True, slots=True)
class RunDetails:
    """Everything about one run."""

    run: RunRecord
    summaries: list[MetricSummary]
    curves: Mapping[str, Sequence[MetricPoint]]
    sources: LineageNode
    """The tree of its inputs."""
    results: LineageNode
    """The tree of its outputs."""
    files: list[RunFile]
    traces: int
    """Number of traces."""


def list_runs(
    where: RunFilter,
    *,
    sort: str = "-started",
    deleted: bool = False,
    tracking_uri: str | None = None,
) -> list[RunRecord]:
    """Return the runs that the filter admits, or the deleted ones, in order.

    Raises:
        ConfigError: `sort` is not a field or metric, or the address of the store cannot be used.
        LlmctlError: the store cannot be read.
    """
    with open_runs(tracking_uri) as store:
        runs = [run for run in store.runs(deleted=deleted) if where.admits(run)]
    return query.sort_runs(runs, sort)


def show(reference: str, tracking_uri: str | None = None) -> RunDetails:
    """Return the details of one run, which may be deleted.

    Raises:
        LlmctlError: there is no such run, or the store cannot be read.
        ConfigError: several runs match the reference.
    """
    with open_runs(tracking_uri) as store:
        runs = store.runs()
        run = _find_anywhere(store, runs, reference)
        curves = store.curves(run.run_id)
        traces = store.count_traces(run.run_id)
    lineage = Lineage([run, *runs] if run.deleted else runs)
    return RunDetails(
        run=run,
        summaries=summarize_metrics(curves),
        curves=curves,
        sources=lineage.sources(run),
        results=lineage.results(run),
        files=list_files(run, tracking_uri),
        traces=traces,
    )


def compare(references: Sequence[str], tracking_uri: str | None = None) -> RunComparison:
    """Compare runs. Raises as `show`, and `ConfigError` for fewer than two runs."""
    with open_runs(tracking_uri) as store:
        runs = find_runs(store, references)
    if len(runs) < 2:
        raise ConfigError("a comparison needs two runs", hint="name a second run")
    return compare_runs(runs)


def plot(
    references: Sequence[str],
    metrics: Sequence[str],
    path: Path,
    tracking_uri: str | None = None,
) -> list[str]:
    """Plot metrics of runs, a panel per metric; return the plotted metrics.

    Args:
        metrics: empty plots every metric with more than one point in any of the runs.

    Raises:
        ConfigError: `path` is not a PNG file in an existing folder, or no run has such a metric.
        LlmctlError: as `show`; or no run has a curve; or the file cannot be written.
    """
    check_plot_path(path)
    with open_runs(tracking_uri) as store:
        runs = find_runs(store, references)
        curves = [store.curves(run.run_id) for run in runs]
    known = sorted({name for of_run in curves for name in of_run})
    if missing := [name for name in metrics if name not in known]:
        raise ConfigError(
            f"none of the runs has the metric {missing[0]!r}",
            hint=f"their metrics: {', '.join(known)}" if known else "they have no metrics",
        )
    lines = {name for of_run in curves for name, points in of_run.items() if len(points) > 1}
    drawn = list(dict.fromkeys(metrics)) or sorted(lines)
    if not drawn:
        raise LlmctlError("none of the runs has a metric with more than one point")
    from llmctl.monitor.read.plot import plot_curves

    plot_curves(
        [
            (run.name, run.run_id[:SHORT_ID_CHARS], of_run)
            for run, of_run in zip(runs, curves, strict=True)
        ],
        drawn,
        path,
    )
    return drawn


def check_plot_path(path: Path) -> None:
    """Raise `ConfigError` if no PNG can be written to a path."""
    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise ConfigError(f"-o {path} is not a .png file in an existing folder")


def best(
    metric: str,
    better: MetricDirection | None,
    where: RunFilter,
    tracking_uri: str | None = None,
) -> tuple[RunRecord, MetricDirection]:
    """Return the run with the best latest value of a metric, and the direction.

    Args:
        better: None derives it from the name of the metric, by default `higher`.

    Raises:
        LlmctlError: no run has a value, or the store cannot be read.
    """
    runs = list_runs(where, tracking_uri=tracking_uri)
    better = better or query.metric_direction(metric) or "higher"
    return query.best_run(runs, metric, better), better


def resolve(
    references: Sequence[str],
    *,
    deleted: bool | None = False,
    tracking_uri: str | None = None,
) -> list[RunRecord]:
    """Return the runs with the given references, each once; `deleted=None` searches the trash too.

    Raises:
        LlmctlError, ConfigError: as `show`.
    """
    with open_runs(tracking_uri) as store:
        return find_runs(store, references, deleted=deleted)


def remove(
    runs: Sequence[RunRecord],
    done: Callable[[RunRecord], None],
    *,
    purge: bool = False,
    tracking_uri: str | None = None,
) -> None:
    """Move runs to the trash, or delete them permanently with their artifacts.

    Args:
        done: called after each removed run.
        purge: delete permanently.

    Raises:
        ConfigError: one of them is still running.
        LlmctlError: the store rejects it, or is a server and `purge` is set.
    """
    if alive := next((run for run in runs if run.status == "running"), None):
        raise ConfigError(f"{alive.name} is still running", hint="end its command first")
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        if purge:
            changes.purge(store, runs, done)
            return
        for run in runs:
            store.client.delete_run(run.run_id)
            done(run)


def restore(references: Sequence[str], tracking_uri: str | None = None) -> list[RunRecord]:
    """Restore runs from the trash and return them. Raises as `show`."""
    runs = resolve(references, deleted=True, tracking_uri=tracking_uri)
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        for run in runs:
            store.client.restore_run(run.run_id)
    return runs


def export(reference: str, target: Path, tracking_uri: str | None = None) -> RunRecord:
    """Export a run to a new folder, which appears complete or not at all.

    Raises:
        ConfigError: the folder exists already.
        LlmctlError: as `show`; or the disk cannot be written.
    """
    with open_runs(tracking_uri) as store:
        run = _find_anywhere(store, store.runs(), reference)
        curves = store.curves(run.run_id)
    write_export(run, run_to_dict(run), curves, target, tracking_uri)
    return run


def write_note(reference: str, text: str, tracking_uri: str | None = None) -> RunRecord:
    """Replace the note of a run; an empty text removes it.

    Raises:
        ConfigError: the text is too long.
        LlmctlError: as `show`.
    """
    check_tag("note", text)
    (run,) = resolve([reference], tracking_uri=tracking_uri)
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        changes.set_tag(store, run.run_id, TAG_NOTE, text)
    return run


def write_tags(
    reference: str, tags: Mapping[str, str], tracking_uri: str | None = None
) -> RunRecord:
    """Set tags of a run; an empty value removes one.

    Raises:
        ConfigError: a tag is reserved or not valid; none is written then.
        LlmctlError: as `show`.
    """
    for name, value in tags.items():
        if value:
            check_tag(name, value)
        if name.startswith(_RESERVED):
            raise ConfigError(
                f"the tag {name!r} is reserved",
                hint="choose another name; `llmctl runs note` writes notes",
            )
    (run,) = resolve([reference], tracking_uri=tracking_uri)
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        for name, value in tags.items():
            changes.set_tag(store, run.run_id, name, value)
    return run


def server_url(tracking_uri: str | None = None) -> str | None:
    """Return the URL of the store if it is a server, which has its own web UI; else None."""
    uri = store_uri(tracking_uri)
    return redact(uri) if uri.startswith(("http://", "https://")) else None


def missing_store_message(tracking_uri: str | None = None) -> str | None:
    """Return a message, with the file if the user chose it, if the SQLite store does not exist."""
    file = sqlite_path(store_uri(tracking_uri))
    if file is None or file.exists():
        return None
    named = tracking_uri or os.environ.get(URI_VARIABLE)
    return f"no runs yet: {file} does not exist" if named else "no runs yet"


def count_waiting_runs(tracking_uri: str | None = None) -> int:
    """Return the number of runs that wait on the disk because the store was not reached yet."""
    return spool.count_waiting_runs(store_uri(tracking_uri))


def ui(port: int, ready: Callable[[str], None], tracking_uri: str | None = None) -> NoReturn:
    """Run the web UI of MLflow for the store until Ctrl-C or SIGTERM.

    Args:
        port: 0 takes a free port.
        ready: called once with the URL when the server answers.

    Raises:
        ConfigError: the port is used.
        LlmctlError: the server did not start, or exited.
    """
    from llmctl.monitor.read import changes
    from llmctl.monitor.read.ui import check_port, run_ui_server

    port = check_port(port)
    with tracked(Tracker()):  # SIGTERM becomes an exception like Ctrl-C
        with changes.open_writable_store(tracking_uri) as store:
            uri, experiment_id = store.uri, store.experiment_id
        run_ui_server(uri, experiment_id, port, ready)


def _find_anywhere(store: RunReader, runs: Sequence[RunRecord], reference: str) -> RunRecord:
    try:
        return find_run(runs, reference)
    except RunNotFoundError:
        with suppress(RunNotFoundError):
            return find_run(store.runs(deleted=True), reference)
        raise
