"""The `llmctl data` commands: check, show, clean, convert, split and merge examples."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import resolve_config, with_config_options
from llmctl.cli.data import clean
from llmctl.cli.data.read_options import FilesArg, read_options
from llmctl.config.data import (
    CheckConfig,
    ConvertConfig,
    MergeConfig,
    ShowConfig,
    SplitConfig,
    WriteConfig,
)
from llmctl.errors import ConfigError
from llmctl.types import ProgressCallback

if TYPE_CHECKING:
    from llmctl.data.io.validating_reader import ReadOptions
    from llmctl.data.operations.convert import WriteSummary
    from llmctl.data.operations.merge import WeightedSource

app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)
app.command("clean")(clean.clean)


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Check, show, clean, split, convert and merge training data."""
    if context.invoked_subcommand is None:
        render.print_help(context)


@app.command()
@with_config_options(CheckConfig)
def check(
    context: typer.Context,
    *,
    files: FilesArg,
    config: options.ConfigFileOpt = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Report the contents of files, and every error in them.

    The exit code is 1 if a row is invalid, or if a held-out row is in the training data.
    """
    from llmctl.cli.views import data_view
    from llmctl.services import data as service

    chosen = resolve_config(CheckConfig, context, values, config).values
    spec = chosen.model_spec()
    with render.show_progress() as progress:
        report = service.check(
            files,
            chosen.eval_file,
            spec=spec,
            max_length=chosen.max_length,
            options=read_options(chosen, keep_all=as_json),
            progress=progress,
        )
    if as_json:
        render.print_json(data_view.report_to_dict(report))
    else:
        data_view.print_check_report(report, everything=chosen.all_errors)
    if not report.sound:
        raise typer.Exit(1)


@app.command()
@with_config_options(ShowConfig)
def show(
    context: typer.Context,
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File, folder or hub id of a dataset.")
    ],
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Number of the row.")] = 1,
    config: options.ConfigFileOpt = None,
    line: Annotated[
        int | None, typer.Option("--line", min=1, help="Show the row at this line, instead of N.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of rows.")] = 1,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Show a row token by token, with its loss mask: context and trained tokens."""
    from llmctl.cli.views import token_view
    from llmctl.services import data as service

    chosen = resolve_config(ShowConfig, context, values, config).values
    with render.show_progress() as progress:
        rows = list(
            service.show(
                file,
                None if line else number,
                line=line,
                count=count,
                spec=chosen.model_spec(),
                options=read_options(chosen),
                progress=progress,
            )
        )
    if as_json:
        render.print_json([token_view.row_to_dict(row) for row in rows])
    else:
        token_view.print_rows(rows)


@app.command()
@with_config_options(ConvertConfig)
def convert(
    context: typer.Context,
    *,
    files: FilesArg,
    config: options.ConfigFileOpt = None,
    **values: Any,
) -> None:
    """Write examples in another format, and report rows that it cannot represent."""
    from llmctl.services import data as service

    chosen = resolve_config(ConvertConfig, context, values, config).values
    _write(
        lambda reading, progress: service.convert_rows(
            files,
            chosen.to,
            Path(chosen.output),
            options=reading,
            overwrite=chosen.overwrite,
            progress=progress,
        ),
        chosen,
    )


@app.command()
@with_config_options(SplitConfig)
def split(
    context: typer.Context,
    *,
    files: FilesArg,
    config: options.ConfigFileOpt = None,
    **values: Any,
) -> None:
    """Split examples into training and held-out rows by the hash of their prompt.

    Rows that are added later do not move others, and no prompt is on both sides.
    """
    from llmctl.services import data as service

    chosen = resolve_config(SplitConfig, context, values, config).values
    _write(
        lambda reading, progress: service.split_rows(
            files,
            Path(chosen.train),
            Path(chosen.eval),
            fraction=chosen.fraction,
            seed=chosen.seed,
            options=reading,
            overwrite=chosen.overwrite,
            progress=progress,
        ),
        chosen,
    )


@app.command()
@with_config_options(MergeConfig)
def merge(
    context: typer.Context,
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[=WEIGHT]",
            help="Files, folders or hub ids; a.jsonl=2 writes each row twice, b.jsonl=0.5 half of "
            "the rows.",
        ),
    ],
    config: options.ConfigFileOpt = None,
    **values: Any,
) -> None:
    """Merge files of examples, each with a weight."""
    from llmctl.services import data as service

    chosen = resolve_config(MergeConfig, context, values, config).values
    weighted = [_parse_weighted(source) for source in sources]
    _write(
        lambda reading, progress: service.merge_sources(
            weighted,
            Path(chosen.output),
            to=chosen.to,
            seed=chosen.seed,
            options=reading,
            overwrite=chosen.overwrite,
            progress=progress,
        ),
        chosen,
    )


def _write(
    write: "Callable[[ReadOptions, ProgressCallback], WriteSummary]", chosen: WriteConfig
) -> None:
    """Run a command that writes files; print the row errors and the written files."""
    from llmctl.cli.views import data_view
    from llmctl.data.io.validating_reader import BadRowsError

    reading = read_options(chosen, on_error=chosen.on_error)
    try:
        with render.show_progress() as progress:
            report = write(reading, progress)
    except BadRowsError as error:
        data_view.print_row_errors(error.log, everything=chosen.all_errors)
        raise
    data_view.print_row_errors(report.log, everything=chosen.all_errors)
    skipped = f", {report.bad_rows:,} of them skipped" if report.bad_rows else ""
    render.print_note(f"{report.rows:,} rows read{skipped}")
    for path, rows in report.files:
        render.print_note(f"{rows:,} rows written to {path}")


def _parse_weighted(text: str) -> "WeightedSource":
    from llmctl.data.operations.merge import WeightedSource

    source, sign, weight = text.rpartition("=")
    if not sign or Path(text).exists():
        return WeightedSource(text)
    try:
        return WeightedSource(source, float(weight))
    except ValueError as error:
        raise ConfigError(
            f"{weight!r} in {text} is not a weight", hint="a number, such as a.jsonl=0.5"
        ) from error
