"""The `llmctl finetune` command."""

import os
import sys
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import collect_options, with_config_options
from llmctl.cli.views import eval_view, train_view
from llmctl.config import TrainConfig
from llmctl.types import TrainReport


@with_config_options(TrainConfig)
def finetune(
    context: typer.Context,
    *,
    config: options.ConfigFileOpt = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --output.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in --output.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan and its memory, and exit."),
    ] = False,
    from_run: Annotated[
        str | None,
        typer.Option("--from-run", help="Repeat a run, given by its id, name or output folder."),
    ] = None,
    nproc: Annotated[
        int,
        typer.Option("--nproc", min=1, help="Processes on this machine, for distributed training."),
    ] = 1,
    nnodes: Annotated[
        int, typer.Option("--nnodes", min=1, help="Machines, for distributed training.")
    ] = 1,
    rendezvous: Annotated[
        str | None,
        typer.Option("--rendezvous", help="HOST:PORT of the rendezvous of several machines."),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--run-name", help="Name of the run in the tracking store.")
    ] = None,
    no_track: options.NoTrackOpt = False,
    tracking_uri: options.TrackingUriOpt = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Fine-tune a model with LoRA, QLoRA, DoRA, rsLoRA, DPO, or on all weights.

    Ctrl-C and SIGTERM save a checkpoint, and --resume continues from it.
    """
    from llmctl.services.finetuning.settings import FinetuneRequest, resolve_settings
    from llmctl.train.distributed import LaunchOptions, is_launched, launch

    request = FinetuneRequest(
        options=collect_options(TrainConfig, context, values),
        file=config,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        from_run=from_run,
        track=not no_track,
        tracking_uri=tracking_uri,
        run_name=run_name,
    )
    first = os.environ.get("RANK", "0") == "0"
    # Errors in the settings are reported before the seconds of importing.
    resolved = resolve_settings(request) if first else None
    if (nproc > 1 or nnodes > 1) and not is_launched():
        raise typer.Exit(launch(LaunchOptions(nproc, nnodes, rendezvous), sys.argv[1:]))
    from llmctl.services.finetuning import run as service  # torch and transformers begin here

    with (
        closing(
            train_view.TrainView(quiet=not first, plan_is_result=dry_run and not as_json)
        ) as view,
        closing(eval_view.EvalView(view.close_bars)) as benchmark_view,
    ):
        report = service.finetune(request, view, view.progress, benchmark_view, resolved)
    if not first:
        return
    if as_json:
        render.print_json(asdict(report))
    elif isinstance(report, TrainReport):
        train_view.print_train_report(report)
        if report.exams:
            render.print_heading("benchmarks, before and after")
            eval_view.print_eval_comparison(report.exams, ())
