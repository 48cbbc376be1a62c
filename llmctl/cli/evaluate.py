"""The `llmctl eval` commands: evaluate a model on benchmarks, show and compare results."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import collect_options, with_config_options
from llmctl.config import EvalConfig

app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)

_RunArgument = Annotated[str, typer.Argument(help="Folder or name of a run.")]


@app.callback(invoke_without_command=True)
@with_config_options(EvalConfig)
def evaluate(
    context: typer.Context,
    *,
    config: options.ConfigFileOpt = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --output.")] = False,
    list_benchmarks: Annotated[
        bool, typer.Option("--list", help="List the benchmarks and where their data is, and exit.")
    ] = False,
    no_track: options.NoTrackOpt = False,
    tracking_uri: options.TrackingUriOpt = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Evaluate a model on benchmarks: C-Eval, MMLU, CMMLU, GSM8K, ARC, or your own.

    Results are written as they come: after Ctrl-C or a crash --resume --output FOLDER continues.
    The exit code is 1 if a sample failed.
    """
    if context.invoked_subcommand is not None:
        return
    data_dir = values.get("data_dir")
    if list_benchmarks:
        list_(data_dir=None if data_dir is None else Path(data_dir), as_json=as_json)
        return
    chosen = collect_options(EvalConfig, context, values)
    if config is None and all(setting.origin == "variable" for setting in chosen.values()):
        render.print_help(context)
        return
    from llmctl.cli.views import eval_view
    from llmctl.services.evaluation import run as service  # torch and transformers begin here

    request = service.EvalRequest(
        options=chosen,
        file=config,
        resume=resume,
        track=not no_track,
        tracking_uri=tracking_uri,
    )
    with closing(eval_view.EvalView()) as view:
        try:
            report = service.evaluate(request, view, view.progress)
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or another signal
            view.stopped()
            raise
    if as_json:
        render.print_json(asdict(report))
    else:
        eval_view.print_eval_report(report)
    if report.failed:
        eval_view.print_failed_samples(report)
        raise typer.Exit(1)


_DataDirOpt = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder with benchmark data, searched before the store."),
]


@app.command("list")
def list_(data_dir: _DataDirOpt = None, as_json: options.JsonOpt = False) -> None:
    """List the benchmarks, their size and modes, and where their data is."""
    from llmctl.services.evaluation import results as service

    benchmarks = service.list_benchmarks(data_dir)
    if as_json:
        render.print_json([asdict(benchmark) for benchmark in benchmarks])
        return
    render.print_table(
        ("BENCHMARK", "TITLE", "LANGUAGE", "QUESTIONS", "SUBJECTS", "MODES", "DATA"),
        [
            (
                benchmark.name,
                benchmark.title,
                benchmark.language,
                f"{benchmark.questions:,}",
                str(benchmark.subjects),
                ", ".join(benchmark.modes),
                benchmark.folder or "not downloaded",
            )
            for benchmark in benchmarks
        ],
        cut=("DATA", "TITLE"),
    )


@app.command()
def show(
    run: _RunArgument,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only incorrect samples.")] = False,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only samples of this subject.")
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", help="Only the sample with this index.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="Maximum number of samples.")
    ] = 20,
    as_json: options.JsonOpt = False,
) -> None:
    """Show the samples of a run: prompt, log-likelihoods or reply, prediction, target."""
    from llmctl.cli.views import eval_view
    from llmctl.services.evaluation import results as service

    found = service.read_samples(run, wrong=wrong, subject=subject, index=index)
    shown = found[:limit]
    if as_json:
        render.print_json(
            [
                {"question": None if q is None else asdict(q), "result": asdict(result)}
                for q, result in shown
            ]
        )
        return
    for question, result in shown:
        eval_view.print_sample(question, result)
    if len(found) > len(shown):
        render.print_note(f"{len(found) - len(shown)} more; --limit {len(found)} shows all")


@app.command()
def compare(
    first: _RunArgument,
    second: _RunArgument,
    flipped: Annotated[
        int,
        typer.Option(
            "--flipped", min=0, help="Maximum number of samples whose correctness changed."
        ),
    ] = 20,
    as_json: options.JsonOpt = False,
) -> None:
    """Compare two runs on the same samples, with the significance of the difference."""
    from llmctl.cli.views import eval_view
    from llmctl.services.evaluation import results as service

    found = service.compare_evaluations(first, second)
    if as_json:
        render.print_json(asdict(found))
        return
    for mark in found.notes:
        render.print_note(f"warning: {mark}")
    rows = [
        (
            f"{a.suite}/{a.subject}/{a.index}",
            a.gold[:24],
            (a.prediction or "-")[:24],
            (b.prediction or "-")[:24],
            "correct" if b.correct else "wrong",
        )
        for a, b in found.flipped
    ]
    eval_view.print_eval_comparison(found.comparisons, rows[:flipped])
    if len(rows) > flipped:
        render.print_note(f"{len(rows) - flipped} more changed; --flipped {len(rows)} shows all")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Folders or names of runs.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write: .html with all samples, or .md with the table."
        ),
    ] = None,
) -> None:
    """Write a report of one or several runs; print their table in Markdown."""
    from llmctl.services.evaluation import results as service

    render.print_line(service.write_report(runs, output).rstrip())
    if output is not None:
        render.print_note(f"written: {output}")


@app.command()
def pull(
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark, see `llmctl eval list`.")],
) -> None:
    """Download the data of a benchmark into the store."""
    from llmctl.services.evaluation import results as service

    with render.show_progress() as progress:
        folder = service.download_data(benchmark, progress)
    render.print_line(str(folder))


@app.command("setup", hidden=True)
@app.command("install-opencompass")
def install_opencompass(
    wheelhouse: Annotated[
        Path | None,
        typer.Option(
            "--wheelhouse", help="Folder with wheels, for machines without a package index."
        ),
    ] = None,
) -> None:
    """Create the virtual environment of --backend opencompass."""
    from llmctl.services.evaluation import results as service

    with render.show_progress() as progress:
        folder = service.setup_opencompass(wheelhouse, progress)
    render.print_line(str(folder))
