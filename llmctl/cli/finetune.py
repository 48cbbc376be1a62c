"""`llmctl finetune`: teach a model from rows of examples."""

import inspect
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.cli import config_options, options, render
from llmctl.cli.views import eval_view, train_view
from llmctl.config import TrainConfig
from llmctl.config.finetune import SETTING_ALIASES
from llmctl.types import TrainReport

_SHORT = {"model": "-m", "data": "-d", "output": "-o"}
_VARIABLES = {"model": "LLMCTL_MODEL", "quant": "LLMCTL_QUANT", "device": "LLMCTL_DEVICE"}


def finetune(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML file with any of the settings below; options go over it."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, exactly.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier run in --output.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and what it would take, and leave."),
    ] = False,
    from_run: Annotated[
        str | None,
        typer.Option("--from-run", help="Repeat a run: its id or name, or the folder it wrote."),
    ] = None,
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, help="Processes on this machine that learn together.")
    ] = 1,
    nnodes: Annotated[
        int, typer.Option("--nnodes", min=1, help="Machines that learn together.")
    ] = 1,
    rendezvous: Annotated[
        str | None, typer.Option("--rendezvous", help="HOST:PORT where several machines meet.")
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--run-name", help="Name of the run in the tracking store.")
    ] = None,
    no_track: Annotated[
        bool, typer.Option("--no-track", help="Leave no record in the tracking store.")
    ] = False,
    tracking_uri: options.TrackingUriOpt = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Teach a model from examples, with LoRA, QLoRA, DoRA, rsLoRA, all weights, or DPO.

    Every setting below is also a key of the --config file. Ctrl-C and SIGTERM save the state, and
    --resume goes on from there.
    """
    from llmctl.services.finetuning.settings import FinetuneRequest, resolve_settings
    from llmctl.train.distributed import LaunchOptions, is_launched, launch

    request = FinetuneRequest(
        options=config_options.collect_options(TrainConfig, context, values),
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
    if first:
        resolve_settings(request)  # what is wrong with them is said before the seconds of importing
    if (nproc > 1 or nnodes > 1) and not is_launched():
        raise typer.Exit(launch(LaunchOptions(nproc, nnodes, rendezvous), sys.argv[1:]))
    from llmctl.services.finetuning import run as service  # torch and transformers begin here

    with (
        train_view.TrainView(quiet=not first, plan_is_result=dry_run and not as_json) as view,
        eval_view.EvalView(view.close_bars) as exams,
    ):
        report = service.finetune(request, view, view.progress, exams)
    if not first:
        return
    if as_json:
        render.print_json(asdict(report))
    elif isinstance(report, TrainReport):
        train_view.print_train_report(report)
        if report.exams:
            render.print_heading("exams, before and after")
            eval_view.print_eval_comparison(report.exams, ())


# Typer reads the options off the signature: ours, and one for each field of the settings.
_own = inspect.signature(finetune).parameters
finetune.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(p for p in _own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD),
        *config_options.config_parameters(
            TrainConfig, aliases=SETTING_ALIASES, short=_SHORT, variables=_VARIABLES
        ),
    ]
)
