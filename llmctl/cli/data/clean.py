"""The `llmctl data clean` command: repair texts and remove unwanted rows by rules."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import collect_options, with_config_options
from llmctl.cli.data.read_options import FilesArg, read_options
from llmctl.config.data import CleanConfig
from llmctl.config.option import field_keys
from llmctl.config.settings import build_config, read_config_file
from llmctl.errors import ConfigError


def _list_rules(is_given: bool) -> None:
    if is_given:
        from llmctl.cli.views import clean_view

        clean_view.print_clean_rules()
        raise typer.Exit


@with_config_options(CleanConfig)
def clean(
    context: typer.Context,
    *,
    files: FilesArg,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE.yaml",
            help="YAML file with rules and any of the options below; the command line overrides "
            "it.",
        ),
    ] = None,
    list_rules: Annotated[  # noqa: ARG001  handled by its callback
        bool,
        typer.Option(
            "--list-rules",
            callback=_list_rules,
            is_eager=True,
            help="List all rules with their thresholds and actions, and exit.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the report without writing files.")
    ] = False,
    explain: Annotated[
        int | None,
        typer.Option(
            "--explain",
            metavar="LINE",
            min=1,
            help="Print the result of every rule for the row at this line, and exit.",
        ),
    ] = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Repair texts, and remove duplicates, invalid rows and other matches of the rules.

    Rows keep their format and other columns. Removed rows are written beside the output with their
    line and reason; so are rows that cannot be read, unless --on-error fail. A second run changes
    nothing.
    """
    from llmctl.cli.views import clean_view, data_view
    from llmctl.data.cleaning.rule_config import RuleOptions
    from llmctl.data.io.validating_reader import BadRowsError
    from llmctl.services import data_clean as service

    source = read_config_file(config) if config is not None else {}
    keys = field_keys(CleanConfig)
    settings_source = {
        name: value for name, value in source.items() if name.replace("-", "_") in keys
    }
    chosen = build_config(
        CleanConfig, settings_source, collect_options(CleanConfig, context, values)
    ).values
    writes = not dry_run and explain is None
    if writes and chosen.output is None:
        raise ConfigError("--output is required", hint="-o clean.jsonl, or --dry-run")
    if chosen.track and not writes:
        raise ConfigError("--track needs a run that writes", hint="remove it")
    rules = RuleOptions(chosen.only, chosen.skip, chosen.rule, chosen.set, chosen.redact)
    rules_source = {
        name: value for name, value in source.items() if name.replace("-", "_") not in keys
    }
    request = service.CleanRequest(
        files,
        service.read_settings(rules, rules_source),
        read_options(chosen, on_error=chosen.on_error),
        chosen.model_spec(),
        chosen.workers,
    )
    try:
        with render.show_progress() as progress:
            if explain is not None:
                explanation = service.explain(request, explain, progress)
            elif chosen.output is not None and not dry_run:
                report, outputs = service.clean(
                    request,
                    Path(chosen.output),
                    overwrite=chosen.overwrite,
                    track=chosen.track,
                    warn=render.print_note,
                    progress=progress,
                )
            else:
                report, outputs = service.preview(request, progress), None
    except BadRowsError as error:
        data_view.print_row_errors(error.log, everything=chosen.all_errors)
        raise
    if explain is not None:
        clean_view.print_clean_explanation(explanation, as_json=as_json)
        return
    clean_view.print_clean_report(report, outputs, as_json=as_json)
    if chosen.strict and not report.is_clean:
        raise typer.Exit(1)
