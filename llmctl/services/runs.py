"""`llmctl runs`: look back at what was run, compare it, take it along, throw it away."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor import NullTracker, tracked
from llmctl.monitor.read import query
from llmctl.monitor.read.files import RunFile, list_files, write_export
from llmctl.monitor.read.lineage import Lineage, LineageNode
from llmctl.monitor.read.metrics import MetricSummary, RunComparison, summarize_metrics, x_values
from llmctl.monitor.read.metrics import compare_runs as side_by_side
from llmctl.monitor.read.query import MetricDirection, RunFilter, parse_time
from llmctl.monitor.read.record import finite_or_none, run_to_dict
from llmctl.monitor.read.runs import (
    SHORT_ID_CHARS,
    RunNotFoundError,
    RunReader,
    find_run,
    find_runs,
    open_runs,
)
from llmctl.monitor.store import URI_VARIABLE, sqlite_path, store_uri
from llmctl.monitor.write.sanitize import check_tag
from llmctl.types import MetricPoint, RunRecord

__all__ = [
    "SHORT_ID_CHARS",
    "LineageNode",
    "MetricDirection",
    "MetricSummary",
    "RunComparison",
    "RunDetails",
    "RunFilter",
    "finite_or_none",
    "parse_time",
    "run_to_dict",
    "x_values",
]

_RESERVED = ("llmctl.", "mlflow.")


@dataclass(frozen=True, slots=True)
class RunDetails:
    """Everything about one run."""

    run: RunRecord
    summaries: list[MetricSummary]
    curves: Mapping[str, Sequence[MetricPoint]]
    sources: LineageNode
    """The run with what it was made from as branches."""
    results: LineageNode
    """The run with what was made from it as branches."""
    files: list[RunFile]
    traces: int
    """Requests of a server that are kept."""


def list_runs(
    where: RunFilter,
    *,
    sort: str = "-started",
    deleted: bool = False,
    tracking_uri: str | None = None,
) -> list[RunRecord]:
    """Return the runs that the filter admits, or those of them in the trash, in order.

    Raises:
        ConfigError: there is nothing of the name to sort by; the store's address cannot be used.
        LlmctlError: the store cannot be read.
    """
    with open_runs(tracking_uri) as store:
        runs = [run for run in store.runs(deleted=deleted) if where.admits(run)]
    return query.sort_runs(runs, sort)


def show(reference: str, tracking_uri: str | None = None) -> RunDetails:
    """Gather everything about one run, in the trash or not.

    Raises:
        LlmctlError: there is no such run, or the store cannot be read.
        ConfigError: the reference may be several.
    """
    with open_runs(tracking_uri) as store:
        runs = store.runs()
        run = _find_anywhere(store, runs, reference)
        curves = store.curves(run.run_id)
        traces = store.count_traces(run.run_id)
    lineage = Lineage.of([run, *runs] if run.deleted else runs)
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
    """Lay runs side by side. Raises as `show`, and `ConfigError` for fewer than two runs."""
    with open_runs(tracking_uri) as store:
        runs = find_runs(store, references)
    if len(runs) < 2:
        raise ConfigError("there is nothing to compare one run with", hint="name a second run")
    return side_by_side(runs)


def plot(
    references: Sequence[str],
    metrics: Sequence[str],
    path: Path,
    tracking_uri: str | None = None,
) -> list[str]:
    """Draw curves of runs over each other, a panel per metric; return the metrics drawn.

    Args:
        metrics: empty draws every metric that has a curve in any of the runs.

    Raises:
        ConfigError: `path` is no PNG file in a folder that exists, or no run has such a metric.
        LlmctlError: as `show`; or no run has a curve; or the file cannot be written.
    """
    check_plot_path(path)
    with open_runs(tracking_uri) as store:
        runs = find_runs(store, references)
        curves = [store.curves(run.run_id) for run in runs]
    known = sorted({name for of_run in curves for name in of_run})
    if missing := [name for name in metrics if name not in known]:
        raise ConfigError(
            f"no run given has the metric {missing[0]!r}",
            hint=f"known: {', '.join(known)}" if known else "they have no metrics at all",
        )
    lines = {name for of_run in curves for name, points in of_run.items() if len(points) > 1}
    drawn = list(dict.fromkeys(metrics)) or sorted(lines)
    if not drawn:
        raise LlmctlError("no run given has a curve: a metric with more than one point")
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
    """Raise `ConfigError` for a path where no PNG can be written, before any work."""
    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise ConfigError(f"-o {path} is no .png file in a folder that exists")


def best(
    metric: str,
    better: MetricDirection | None,
    where: RunFilter,
    tracking_uri: str | None = None,
) -> tuple[RunRecord, MetricDirection]:
    """Return the run with the best latest value of a metric, and which side counted as better.

    Args:
        better: None goes by the metric's name; what says nothing is better when higher.

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
    """Return the runs that a person means, each once; `deleted=None` looks in the trash too.

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
    """Put runs into the trash, or delete them for good with their files.

    Args:
        done: told of each run when it is gone.

    Raises:
        ConfigError: one of them still runs.
        LlmctlError: the store refuses, or is a server and `purge` is asked.
    """
    if alive := next((run for run in runs if run.status == "running"), None):
        raise ConfigError(f"{alive.name} still runs", hint="end its command first")
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        if purge:
            changes.purge(store, runs, done)
            return
        for run in runs:
            changes.move_to_trash(store, run)
            done(run)


def restore(references: Sequence[str], tracking_uri: str | None = None) -> list[RunRecord]:
    """Take runs out of the trash and return them. Raises as `show`."""
    runs = resolve(references, deleted=True, tracking_uri=tracking_uri)
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        for run in runs:
            changes.restore(store, run)
    return runs


def export(reference: str, target: Path, tracking_uri: str | None = None) -> RunRecord:
    """Write everything that is known of a run into a new folder, which appears whole.

    Raises:
        ConfigError: something is there already.
        LlmctlError: as `show`; or the disk refuses.
    """
    with open_runs(tracking_uri) as store:
        run = _find_anywhere(store, store.runs(), reference)
        curves = store.curves(run.run_id)
    write_export(run, run_to_dict(run), curves, target, tracking_uri)
    return run


def write_note(reference: str, text: str, tracking_uri: str | None = None) -> RunRecord:
    """Replace a run's note; an empty text removes it.

    Raises:
        ConfigError: the text is too long.
        LlmctlError: as `show`.
    """
    check_tag("note", text)
    (run,) = resolve([reference], tracking_uri=tracking_uri)
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        changes.set_note(store, run.run_id, text)
    return run


def write_tags(
    reference: str, tags: Mapping[str, str], tracking_uri: str | None = None
) -> RunRecord:
    """Set tags of a run; an empty value removes one.

    Raises:
        ConfigError: a tag is kept by llmctl or MLflow itself, or no store takes it; none is
            written then.
        LlmctlError: as `show`.
    """
    for name, value in tags.items():
        if value:
            check_tag(name, value)
        if name.startswith(_RESERVED):
            raise ConfigError(
                f"the tag {name!r} is kept by the program itself",
                hint="choose another name; for a note there is `llmctl runs note`",
            )
    (run,) = resolve([reference], tracking_uri=tracking_uri)
    from llmctl.monitor.read import changes

    with changes.open_writable_store(tracking_uri) as store:
        for name, value in tags.items():
            changes.set_tag(store, run.run_id, name, value)
    return run


def server_url(tracking_uri: str | None = None) -> str | None:
    """Return the address of the store if it is a server, which shows its runs itself."""
    uri = store_uri(tracking_uri)
    return uri if uri.startswith(("http://", "https://")) else None


def missing_store_message(tracking_uri: str | None = None) -> str | None:
    """Say in a line that there is no store to look into; None where there is one.

    Its file is named if a person named it. One that is no file is taken to be there.
    """
    file = sqlite_path(store_uri(tracking_uri))
    if file is None or file.exists():
        return None
    named = tracking_uri or os.environ.get(URI_VARIABLE)
    return f"no runs yet: there is no file {file}" if named else "no runs yet"


def ui(port: int, ready: Callable[[str], None], tracking_uri: str | None = None) -> NoReturn:
    """Show MLflow's own web page of the store until Ctrl-C or SIGTERM, and end all of it then.

    Args:
        port: 0 takes a free one.
        ready: called once, with the page's address, when it answers.

    Raises:
        ConfigError: the port is taken.
        LlmctlError: the page does not start, or ended by itself.
    """
    from llmctl.monitor.read import changes
    from llmctl.monitor.read.ui import check_port, run_ui_server

    port = check_port(port)
    with tracked(NullTracker()):  # SIGTERM becomes an exception, as Ctrl-C is one
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
