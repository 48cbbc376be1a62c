"""`llmctl eval`: sit a model through exams, look at the answers, compare two runs."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import config_options, options, render
from llmctl.config import EvalConfig
from llmctl.config.evaluation import SETTING_ALIASES

app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)

_SHORT = {"model": "-m", "dataset": "-d", "output": "-o"}
_VARIABLES = {"model": "LLMCTL_MODEL", "quant": "LLMCTL_QUANT", "device": "LLMCTL_DEVICE"}
_RunArgument = Annotated[str, typer.Argument(help="Folder of a run, or its name in the store.")]


def evaluate(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML file with any of the settings below; options go over it."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output.")
    ] = False,
    list_suites: Annotated[
        bool, typer.Option("--list", help="Name the exams and where their data is, and leave.")
    ] = False,
    no_track: Annotated[
        bool, typer.Option("--no-track", help="Leave no record in the tracking store.")
    ] = False,
    tracking_uri: options.TrackingUriOpt = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Sit a model through exams: C-Eval, MMLU, CMMLU, GSM8K, ARC, or one of your own.

    Every setting below is also a key of the --config file. Answers are on the disk as they come:
    after Ctrl-C or a crash --resume --output FOLDER goes on. Ends with 1 if a question failed.
    """
    if context.invoked_subcommand is not None:
        return
    data_dir = values.get("data_dir")
    if list_suites:
        list_(data_dir=None if data_dir is None else Path(data_dir), as_json=as_json)
        return
    chosen = config_options.collect_options(EvalConfig, context, values)
    if not chosen and config is None:
        typer.echo(context.get_help())
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
    with eval_view.EvalView() as view:
        try:
            report = service.evaluate(request, view, view.progress)
        except (KeyboardInterrupt, SystemExit):  # by Ctrl-C, or by another signal
            view.stopped()
            raise
    if as_json:
        render.print_json(asdict(report))
    else:
        eval_view.print_eval_report(report)
    if report.failed:
        eval_view.print_failed_samples(report)
        raise typer.Exit(1)


_own = inspect.signature(evaluate).parameters
evaluate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(p for p in _own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD),
        *config_options.config_parameters(
            EvalConfig, aliases=SETTING_ALIASES, short=_SHORT, variables=_VARIABLES
        ),
    ]
)
app.callback(invoke_without_command=True)(evaluate)


_DataDirOpt = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder to look for exams in, before the store.")
]


@app.command("list")
def list_(data_dir: _DataDirOpt = None, as_json: options.JsonOpt = False) -> None:
    """Name the exams, their size and modes, and where their data is."""
    from llmctl.services.evaluation import results as service

    known = service.list_benchmarks(data_dir)
    if as_json:
        render.print_json([asdict(suite) for suite in known])
        return
    render.print_table(
        ("EXAM", "TITLE", "LANGUAGE", "QUESTIONS", "SUBJECTS", "MODES", "DATA"),
        [
            (
                suite.name,
                suite.title,
                suite.language,
                f"{suite.questions:,}",
                str(suite.subjects),
                ", ".join(suite.modes),
                suite.folder or "not here",
            )
            for suite in known
        ],
        cut=("DATA", "TITLE"),
    )


@app.command()
def show(
    run: _RunArgument,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only what was not right.")] = False,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only questions of this subject.")
    ] = None,
    index: Annotated[
        int | None, typer.Option("--index", help="Only the question with this number.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many at most.")] = 20,
    as_json: options.JsonOpt = False,
) -> None:
    """Look at the questions of a run: prompt, likelihoods or reply, answer, gold."""
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
        int, typer.Option("--flipped", min=0, help="So many flipped questions at most.")
    ] = 20,
    as_json: options.JsonOpt = False,
) -> None:
    """Compare two runs over the same questions: is the difference more than chance?"""
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
            "right" if b.correct else "wrong",
        )
        for a, b in found.flipped
    ]
    eval_view.print_eval_comparison(found.comparisons, rows[:flipped])
    if len(rows) > flipped:
        render.print_note(f"{len(rows) - flipped} more flipped; --flipped {len(rows)} shows all")


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of runs, or their names in the store.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File: .html is a page to look through, .md the table alone."
        ),
    ] = None,
) -> None:
    """Write a page about a run, or about several side by side; print their table in Markdown."""
    from llmctl.services.evaluation import results as service

    render.print_line(service.write_report(runs, output).rstrip())
    if output is not None:
        render.print_note(f"written to {output}")


@app.command()
def pull(
    exam: Annotated[str, typer.Argument(help="Name of an exam, as `list` has it.")],
) -> None:
    """Fetch the data of an exam into the store."""
    from llmctl.services.evaluation import results as service

    with render.show_progress() as progress:
        folder = service.download_data(exam, progress)
    render.print_line(str(folder))


@app.command()
def setup(
    wheelhouse: Annotated[
        Path | None,
        typer.Option("--wheelhouse", help="Folder of packages, for machines without an index."),
    ] = None,
) -> None:
    """Build the environment in which OpenCompass runs (--backend opencompass)."""
    from llmctl.services.evaluation import results as service

    with render.show_progress() as progress:
        folder = service.setup_opencompass(wheelhouse, progress)
    render.print_line(str(folder))
