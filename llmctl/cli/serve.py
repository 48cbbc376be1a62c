"""The `llmctl serve` command: an OpenAI-compatible server, or an estimate of its memory."""

import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import resolve_config, with_config_options
from llmctl.cli.views.estimate_view import print_estimate
from llmctl.config import ServeConfig
from llmctl.config.option import parse_size
from llmctl.errors import ConfigError
from llmctl.types import EngineInfo


def _parse_size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is {error}") from error


@with_config_options(ServeConfig)
def serve(
    context: typer.Context,
    *,
    config: options.ConfigFileOpt = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print the memory that the model needs, and exit.")
    ] = False,
    free: Annotated[
        int | None,
        typer.Option(
            "--free",
            parser=_parse_size,
            metavar="SIZE",
            help="With --estimate: for a machine with this free memory, such as 8GiB; on a CUDA "
            "GPU unless --device names another device.",
        ),
    ] = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Serve a model with an OpenAI-compatible API.

    The API is at http://HOST:PORT/v1. After Ctrl-C or SIGTERM running requests may finish.
    """
    chosen = resolve_config(ServeConfig, context, values, config).values
    spec = chosen.model_spec()
    if estimate:
        from llmctl.services.estimate import estimate as estimate_memory

        print_estimate(estimate_memory(spec, free), as_json=as_json)
        return
    if free is not None or as_json:
        raise ConfigError("--free and --json need --estimate", hint="add --estimate")
    chosen = replace(
        chosen,
        api_keys=chosen.read_api_keys(),
        api_key_file=None,
        track=chosen.track or chosen.trace_share > 0,
    )
    from llmctl.services import serve as service  # torch, transformers and FastAPI begin here

    with ExitStack() as loading:
        progress = loading.enter_context(render.show_progress())

        def ready(url: str, info: EngineInfo) -> None:
            loading.close()
            render.print_engine_summary(info)
            if info.response_formats is not None:
                render.print_note(str(info.response_formats))
            render.print_note(f"OpenAI-compatible API at {url}/v1 (Ctrl-C stops it)")

        stop_signal = service.serve(spec, chosen, ready, progress, render.print_note)
    if stop_signal == signal.SIGINT:
        raise typer.Exit(130)
