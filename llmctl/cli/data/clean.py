"""`llmctl data clean`: take out of examples what nobody should learn, and say what it was."""

from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli import options, render
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
from llmctl.types import ModelSpec


def _list_rules(wanted: bool) -> None:
    if wanted:
        from llmctl.cli.views import clean_view

        clean_view.print_clean_rules()
        raise typer.Exit


def clean(
    files: FilesArg,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File for the rows that stay: .jsonl, .json, .csv, .tsv or .parquet (also .gz). "
            "What goes and the report lie beside it.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="RULE", help="Only this rule; may be repeated."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="RULE", help="Not this rule; may be repeated."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="RULE[=ACTION]",
            help="What a rule does: off, report, change or remove; may be repeated.",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[RULE.]THRESHOLD=VALUE",
            help="A rule's threshold, such as max-tokens=2048 or keep=zh,en; may be repeated.",
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact", help="Put <EMAIL>, <PHONE>, ... for personal data, in every column."
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML file of rules; options rank higher."),
    ] = None,
    list_rules: Annotated[  # noqa: ARG001 - answered by its callback
        bool,
        typer.Option(
            "--list-rules",
            callback=_list_rules,
            is_eager=True,
            help="Show all rules, their thresholds and what they do, and leave.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    explain: Annotated[
        int | None,
        typer.Option(
            "--explain",
            metavar="LINE",
            min=1,
            help="Say what every rule says of the row at this line; write nothing.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 if any rule had anything to say.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Whose tokenizer and chat template count tokens.  [default: where a rule needs "
            f"it, {options.DEFAULT_MODEL_NAME}]",
        ),
    ] = None,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    column: ColumnOpt = None,
    format: FormatOpt = None,
    on_error: OnErrorOpt = "skip",
    overwrite: OverwriteOpt = False,
    all_problems: AllOpt = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes.  [default: one per core, 1 for small files]"
        ),
    ] = None,
    track: Annotated[
        bool,
        typer.Option("--track/--no-track", help="Remember this run; takes some seconds more."),
    ] = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Repair texts, and take out duplicates, broken rows and whatever else rules find.

    Rows keep their format and further columns. What goes is written beside the output with its
    line and reason; rows that cannot be read go too, unless --on-error fail. Cleaning twice
    changes nothing.
    """
    from llmctl.cli.views import clean_view, data_view
    from llmctl.data.cleaning.rule_config import RuleOptions
    from llmctl.data.io.validating_reader import BadRowsError, ReadOptions
    from llmctl.services import data_clean as service

    writes = not dry_run and explain is None
    if writes and output is None:
        raise ConfigError("where to? there is no --output", hint="-o clean.jsonl, or --dry-run")
    if track and not writes:
        raise ConfigError("--track is for runs that write", hint="leave it out")
    if model is None and (chat_template is not None or trust_remote_code):
        raise ConfigError("--chat-template and --trust-remote-code need --model")
    settings = service.read_settings(
        RuleOptions(only or (), skip or (), rule or (), threshold or (), redact), config
    )
    request = service.CleanRequest(
        files,
        settings,
        ReadOptions(column_names(column), format, on_error, None if all_problems else 1000),
        None
        if model is None
        else ModelSpec(
            model,
            chat_template=None if chat_template is None else str(chat_template),
            trust_remote_code=trust_remote_code,
        ),
        workers,
    )
    try:
        with render.show_progress() as progress:
            if explain is not None:
                explanation = service.explain(request, explain, progress)
            elif output is not None and not dry_run:
                report, outputs = service.clean(
                    request,
                    output,
                    overwrite=overwrite,
                    track=track,
                    warn=render.print_note,
                    progress=progress,
                )
            else:
                report, outputs = service.preview(request, progress), None
    except BadRowsError as error:
        data_view.print_row_errors(error.log, everything=all_problems)
        raise
    if explain is not None:
        clean_view.print_clean_explanation(explanation, as_json=as_json)
        return
    clean_view.print_clean_report(report, outputs, as_json=as_json)
    if strict and not report.is_clean:
        raise typer.Exit(1)
