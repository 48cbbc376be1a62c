"""`llmctl data`: look at examples to learn from, and make other files of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.data import clean
from llmctl.cli.data.options import (
    AllOpt,
    ColumnOpt,
    FilesArg,
    FormatOpt,
    OnErrorOpt,
    OverwriteOpt,
    column_names,
)
from llmctl.errors import ConfigError
from llmctl.types import ModelSpec, ProgressCallback

if TYPE_CHECKING:
    from llmctl.data.operations.convert import WriteSummary

app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)
app.command("clean")(clean.clean)

OutputOpt = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="File to write: .jsonl, .json, .csv, .tsv or .parquet (also .gz)."
    ),
]


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Check, show, clean, split, convert and merge examples to learn from."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def check(
    files: FilesArg,
    eval_file: Annotated[
        list[str] | None,
        typer.Option("--eval-file", help="Examples to measure on; looks for leaks too."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar="LLMCTL_MODEL",
            help="Whose tokenizer and chat template count tokens.  [default: the default model's, "
            "if it is on this machine]",
        ),
    ] = None,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            min=1,
            help="Tokens that a row may have.  [default: the model's context]",
        ),
    ] = None,
    column: ColumnOpt = None,
    format: FormatOpt = None,
    all_problems: AllOpt = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Say what is in files, and everything that is wrong with them.

    Exit code 1 means that a row cannot be learnt from, or that an eval row is in train.
    """
    from llmctl.cli.views import data_view
    from llmctl.data.io.validating_reader import ReadOptions
    from llmctl.services import data as service

    spec = None if model is None else _spec(model, chat_template, trust_remote_code)
    if spec is None and (chat_template is not None or trust_remote_code):
        raise ConfigError(
            "--chat-template and --trust-remote-code need a model", hint="add --model NAME"
        )
    with render.show_progress() as progress:
        report = service.check(
            files,
            eval_file or (),
            spec=spec,
            max_length=max_length,
            options=ReadOptions(
                column_names(column),
                format,
                max_kept_errors=None if all_problems or as_json else 1000,
            ),
            progress=progress,
        )
    if as_json:
        render.print_json(data_view.report_to_dict(report))
    else:
        data_view.print_check_report(report, everything=all_problems)
    if not report.sound:
        raise typer.Exit(1)


@app.command()
def show(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File, folder or hub id of a dataset.")
    ],
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Which row.")] = 1,
    line: Annotated[
        int | None, typer.Option("--line", min=1, help="The row at this line of the file, not N.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="So many rows.")] = 1,
    model: options.ModelOpt = options.DEFAULT_MODEL_NAME,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    column: ColumnOpt = None,
    format: FormatOpt = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Show a row token by token: what is only context, and what a model learns to say."""
    from llmctl.cli.views import token_view
    from llmctl.data.io.validating_reader import ReadOptions
    from llmctl.services import data as service

    with render.show_progress() as progress:
        rows = list(
            service.show(
                file,
                None if line else number,
                line=line,
                count=count,
                spec=_spec(model, chat_template, trust_remote_code),
                options=ReadOptions(column_names(column), format),
                progress=progress,
            )
        )
    if as_json:
        render.print_json([token_view.row_to_dict(row) for row in rows])
    else:
        token_view.print_rows(rows)


@app.command()
def convert(
    files: FilesArg,
    output: OutputOpt,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="messages, sharegpt, alpaca, prompt-completion, preference or text."
        ),
    ],
    column: ColumnOpt = None,
    format: FormatOpt = None,
    on_error: OnErrorOpt = "fail",
    overwrite: OverwriteOpt = False,
    all_problems: AllOpt = False,
) -> None:
    """Write examples in another format, and say which rows it cannot hold."""
    from llmctl.data.io.validating_reader import ReadOptions
    from llmctl.services import data as service

    reading = ReadOptions(column_names(column), format, on_error, _kept(all_problems))
    _write(
        lambda progress: service.convert_rows(
            files, to, output, options=reading, overwrite=overwrite, progress=progress
        ),
        everything=all_problems,
    )


@app.command()
def split(
    files: FilesArg,
    train: Annotated[Path, typer.Option("--train", help="File for the rows to learn from.")],
    eval: Annotated[Path, typer.Option("--eval", help="File for the rows to measure on.")],
    fraction: Annotated[
        float, typer.Option("--fraction", min=0, max=1, help="Share of prompts that go to eval.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other rows.")] = 0,
    column: ColumnOpt = None,
    format: FormatOpt = None,
    on_error: OnErrorOpt = "fail",
    overwrite: OverwriteOpt = False,
    all_problems: AllOpt = False,
) -> None:
    """Divide examples into train and eval by the hash of their prompt.

    Rows that are added later move no other row, and the same prompt is never on both sides.
    """
    from llmctl.data.io.validating_reader import ReadOptions
    from llmctl.services import data as service

    reading = ReadOptions(column_names(column), format, on_error, _kept(all_problems))
    _write(
        lambda progress: service.split_rows(
            files,
            train,
            eval,
            fraction=fraction,
            seed=seed,
            options=reading,
            overwrite=overwrite,
            progress=progress,
        ),
        everything=all_problems,
    )


@app.command()
def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[=WEIGHT]",
            help="Files, folders or hub ids; a.jsonl=2 writes each row twice, b.jsonl=0.5 half of "
            "the rows.",
        ),
    ],
    output: OutputOpt,
    to: Annotated[
        str | None, typer.Option("--to", help="Format of all rows.  [default: each as it is]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other rows.")] = 0,
    column: ColumnOpt = None,
    format: FormatOpt = None,
    on_error: OnErrorOpt = "fail",
    overwrite: OverwriteOpt = False,
    all_problems: AllOpt = False,
) -> None:
    """Join files of examples, each with its weight."""
    from llmctl.data.io.validating_reader import ReadOptions
    from llmctl.services import data as service

    reading = ReadOptions(column_names(column), format, on_error, _kept(all_problems))
    weighted = [_weighted(source) for source in sources]
    _write(
        lambda progress: service.merge_sources(
            weighted,
            output,
            to=to,
            seed=seed,
            options=reading,
            overwrite=overwrite,
            progress=progress,
        ),
        everything=all_problems,
    )


def _write(make: "Callable[[ProgressCallback], WriteSummary]", *, everything: bool) -> None:
    """Do the work, then say what was left out and what was written."""
    from llmctl.cli.views import data_view
    from llmctl.data.io.validating_reader import BadRowsError

    try:
        with render.show_progress() as progress:
            written = make(progress)
    except BadRowsError as error:
        data_view.print_row_errors(error.log, everything=everything)
        raise
    data_view.print_row_errors(written.log, everything=everything)
    left_out = f", {written.bad_rows:,} of them left out" if written.bad_rows else ""
    render.print_note(f"{written.rows:,} rows read{left_out}")
    for path, rows in written.files:
        render.print_note(f"{rows:,} rows written to {path}")


def _weighted(text: str) -> Any:
    from llmctl.data.operations.merge import WeightedSource

    source, sign, weight = text.rpartition("=")
    if not sign or Path(text).exists():
        return WeightedSource(text)
    try:
        return WeightedSource(source, float(weight))
    except ValueError as error:
        raise ConfigError(
            f"{weight!r} in {text} is no weight", hint="a number, such as a.jsonl=0.5"
        ) from error


def _kept(everything: bool) -> int | None:
    return None if everything else 1000


def _spec(model: str, chat_template: Path | None, trust_remote_code: bool) -> ModelSpec:
    return ModelSpec(
        model=model,
        chat_template=None if chat_template is None else str(chat_template),
        trust_remote_code=trust_remote_code,
    )
