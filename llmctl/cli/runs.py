"""The `llmctl runs` commands: list, inspect, compare and manage tracked runs."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli import options, render
from llmctl.cli.views import run_view
from llmctl.errors import ConfigError
from llmctl.types import TAG_ADAPTER, RunKind, RunRecord, RunStatus

if TYPE_CHECKING:
    from llmctl.monitor.read.query import MetricDirection, RunFilter

app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)

_RunArg = Annotated[
    str, typer.Argument(metavar="RUN", help="Id or name, a prefix of either, or `latest`.")
]
_RunsArg = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Ids or names, prefixes of either, or `latest`."),
]
_KindOpt = Annotated[RunKind | None, typer.Option("--kind", "-k", help="Only runs of this kind.")]
_ModelOpt = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Only runs with this text in the name of the model."),
]
_StatusOpt = Annotated[
    RunStatus | None, typer.Option("--status", help="Only runs with this status.")
]
_SinceOpt = Annotated[
    str | None, typer.Option("--since", help="Started within 2h, 7d, 1w, or since 2026-05-31.")
]
_PlotOpt = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.png", help="Draw the metrics into this file."),
]

DEFAULT_LIMIT = 50
"""Default length of a list."""


@app.callback(invoke_without_command=True)
def runs(context: typer.Context) -> None:
    """Inspect tracked runs: list, show, compare, plot, best, note, tag, export, rm, ui."""
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_(
    kind: _KindOpt = None,
    model: _ModelOpt = None,
    status: _StatusOpt = None,
    since: _SinceOpt = None,
    sort: Annotated[
        str,
        typer.Option(
            "--sort",
            help="A metric, or started, duration, name, kind, model, status; "
            "a leading - sorts in descending order.",
        ),
    ] = "-started",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="Reverse the order.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="Maximum number of runs; 0 is all.")
    ] = DEFAULT_LIMIT,
    trash: Annotated[bool, typer.Option("--trash", help="List the runs in the trash.")] = False,
    as_json: options.JsonOpt = False,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """List the runs, newest first."""
    from llmctl.monitor.read import record
    from llmctl.services import runs as service

    order = sort if not reverse else sort[1:] if sort.startswith("-") else f"-{sort}"
    found = service.list_runs(
        _filter(kind, model, status, since), sort=order, deleted=trash, tracking_uri=tracking_uri
    )
    shown = found[:limit] if limit else found
    if as_json:
        render.print_json([record.run_to_dict(run) for run in shown])
    elif found:
        run_view.print_run_list(shown, sort.removeprefix("-"))
    if not found:
        given = any(option is not None for option in (kind, model, status, since))
        none = "no matching runs" if given else "the trash is empty" if trash else "no runs yet"
        render.print_note(service.missing_store_message(tracking_uri) or none)
    if waiting := service.count_waiting_runs(tracking_uri):
        render.print_note(
            f"{waiting} {'run waits' if waiting == 1 else 'runs wait'} on the disk: the store "
            "was not reached yet; the next llmctl that reaches it delivers the record"
        )
    if len(shown) < len(found):
        render.print_note(f"{len(shown):,} of {len(found):,} runs; --limit 0 shows all")


@app.command()
def show(
    run: _RunArg,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", help="Draw this metric; may be repeated.  [default: the key metric]"
        ),
    ] = None,
    as_json: options.JsonOpt = False,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Show one run: parameters, metrics, curves, lineage and files."""
    from llmctl.services import runs as service

    details = service.show(run, tracking_uri)
    if missing := [name for name in metric or () if name not in details.curves]:
        known = ", ".join(details.curves) or "none"
        raise ConfigError(f"the run has no metric {missing[0]!r}", hint=f"its metrics: {known}")
    if as_json:
        render.print_json(run_view.run_details_to_dict(details))
    else:
        run_view.print_run(details, metric)


@app.command()
def compare(
    runs: _RunsArg,
    output: _PlotOpt = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="With -o: draw only this metric; may be repeated."),
    ] = None,
    as_json: options.JsonOpt = False,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Compare runs: the parameters that differ, and the latest value of each metric."""
    from llmctl.services import runs as service

    if metric and output is None:
        raise ConfigError("--metric needs --output", hint="add -o FILE.png")
    if output is not None:
        service.check_plot_path(output)
    comparison = service.compare(runs, tracking_uri)
    if as_json:
        render.print_json(run_view.run_comparison_to_dict(comparison))
    else:
        run_view.print_run_comparison(comparison)
    if output is not None:
        service.plot([run.run_id for run in comparison.runs], metric or [], output, tracking_uri)
        render.print_note(f"written: {output}")


@app.command()
def plot(
    run: _RunArg,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.png", help="PNG file to write.")
    ],
    metrics: Annotated[
        list[str] | None,
        typer.Argument(metavar="METRIC...", help="Metrics to draw.  [default: all]"),
    ] = None,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Draw metrics of a run into a PNG file."""
    from llmctl.services import runs as service

    drawn = service.plot([run], metrics or [], output, tracking_uri)
    render.print_note(f"written: {output} ({', '.join(drawn)})")


@app.command()
def best(
    metric: Annotated[str, typer.Option("--metric", help="Metric to compare, such as eval/ceval.")],
    lowest: Annotated[
        bool | None,
        typer.Option(
            "--min/--max",
            help="Whether lower or higher is better.  [default: by the name of the metric]",
        ),
    ] = None,
    kind: _KindOpt = None,
    model: _ModelOpt = None,
    status: _StatusOpt = None,
    since: _SinceOpt = None,
    as_json: options.JsonOpt = False,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Show the run with the best latest value of a metric."""
    from llmctl.monitor.read import record
    from llmctl.services import runs as service

    wanted: MetricDirection | None = None if lowest is None else "lower" if lowest else "higher"
    where = _filter(kind, model, status, since)
    run, side = service.best(metric, wanted, where, tracking_uri)
    if as_json:
        render.print_json(record.run_to_dict(run))
        return
    run_view.print_run_list([run], metric)
    value = render.format_number(run.metrics[metric])
    render.print_note(f"{'lowest' if side == 'lower' else 'highest'} {metric}: {value}")


@app.command()
def rm(
    runs: _RunsArg,
    purge: Annotated[
        bool, typer.Option("--purge", help="Delete permanently, with metrics, files and traces.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Move runs to the trash; `restore` undoes it."""
    from llmctl.monitor.read.runs import SHORT_ID_CHARS
    from llmctl.services import runs as service

    found = service.resolve(runs, deleted=None if purge else False, tracking_uri=tracking_uri)
    if purge and not yes:
        names = ", ".join(f"{run.name} [{run.run_id[:SHORT_ID_CHARS]}]" for run in found)
        render.confirm(
            f"Delete permanently, with metrics, files and traces: {names}?", unless="--yes"
        )

    def done(run: RunRecord) -> None:
        render.print_note(f"{run.name} is {'deleted' if purge else 'in the trash'}")

    service.remove(found, done, purge=purge, tracking_uri=tracking_uri)
    if not purge:
        ids = " ".join(run.run_id[:SHORT_ID_CHARS] for run in found)
        render.print_note(
            f"`llmctl runs restore {ids}` restores {'it' if len(found) == 1 else 'them'}"
        )
    for run in found:
        if purge and run.model_id and (folder := run.tags.get(TAG_ADAPTER)):
            render.print_note(f"its adapter is not deleted: {folder}")


@app.command()
def restore(runs: _RunsArg, tracking_uri: options.TrackingUriOpt = None) -> None:
    """Restore runs from the trash."""
    from llmctl.services import runs as service

    for run in service.restore(runs, tracking_uri):
        render.print_note(f"{run.name} is restored")


@app.command()
def export(
    run: _RunArg,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="New or empty folder.")
    ],
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Export a run into a folder: properties as JSON, metrics as CSV, and its files."""
    from llmctl.services import runs as service

    found = service.export(run, output, tracking_uri)
    render.print_note(f"{found.name} exported to {output}")


@app.command()
def note(
    run: _RunArg,
    text: Annotated[
        str | None, typer.Argument(help="New note; '' removes it.  [default: show the note]")
    ] = None,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Show or write the note of a run. MLflow's user interface shows it too."""
    from llmctl.services import runs as service

    if text is not None:
        found = service.write_note(run, text, tracking_uri)
        render.print_note(f"{found.name}: the note is {'written' if text else 'removed'}")
        return
    (found,) = service.resolve([run], deleted=None, tracking_uri=tracking_uri)
    if found.note:
        render.print_line(found.note)
    else:
        render.print_note(f"{found.name} has no note")


@app.command()
def tag(
    run: _RunArg,
    tags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Tags to set; `KEY=` removes a tag.  [default: show the tags]",
        ),
    ] = None,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Show or set tags of a run."""
    from llmctl.services import runs as service

    pairs = {}
    for text in tags or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{text!r} is not a tag", hint="write KEY=VALUE")
        pairs[key.strip()] = value
    if pairs:
        found = service.write_tags(run, pairs, tracking_uri)
        render.print_note(f"{found.name}: {', '.join(tags or ())}")
        return
    (found,) = service.resolve([run], deleted=None, tracking_uri=tracking_uri)
    if found.tags:
        render.print_table(("TAG", "VALUE"), list(found.tags.items()))


@app.command()
def ui(
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 selects a free one.")
    ] = 0,
    tracking_uri: options.TrackingUriOpt = None,
) -> None:
    """Start MLflow's user interface on this machine until Ctrl-C."""
    from llmctl.services import runs as service

    page = service.server_url(tracking_uri)
    if page is not None:
        render.print_note("the tracking server has its own user interface:")
        render.print_line(page)
        return
    if missing := service.missing_store_message(tracking_uri):
        render.print_note(missing)
        return

    def ready(url: str) -> None:
        render.print_line(url)
        render.print_note("Ctrl-C stops it")

    render.print_note("starting MLflow's user interface, which takes some seconds")
    service.ui(port, ready, tracking_uri)


def _filter(
    kind: RunKind | None, model: str | None, status: RunStatus | None, since: str | None
) -> "RunFilter":
    from llmctl.monitor.read.query import RunFilter, parse_time

    begin = None if since is None else parse_time(since, datetime.now())
    return RunFilter(kind, model, status, begin)
