"""`llmctl serve`: an OpenAI-compatible server for one model."""

import signal
from contextlib import ExitStack
from typing import Annotated

import typer

from llmctl.cli import options, render
from llmctl.config import ServeOptions
from llmctl.types import EngineInfo

DEFAULT = ServeOptions()


def serve(
    model: options.ModelOpt = options.MODEL,
    quant: options.QuantOpt = "none",
    host: Annotated[
        str, typer.Option("--host", envvar="LLMCTL_HOST", help="Address to listen on.")
    ] = DEFAULT.host,
    port: Annotated[
        int,
        typer.Option(
            "--port", "-p", envvar="LLMCTL_PORT", min=0, max=65535, help="0 takes a free port."
        ),
    ] = DEFAULT.port,
    served_name: Annotated[
        list[str] | None,
        typer.Option("--served-name", help="Further name clients may use; may be repeated."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds that running replies get to end on SIGTERM."),
    ] = DEFAULT.drain_s,
    device: options.DeviceOpt = "auto",
    dtype: options.DTypeOpt = "auto",
    adapter: options.AdapterOpt = None,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    allow_pickle: options.PickleOpt = False,
) -> None:
    """Serve a model to any OpenAI client.

    The API is at http://HOST:PORT/v1. Ctrl-C or SIGTERM lets running replies end, then leaves.
    """
    spec = options.model_spec(
        model, quant, device, dtype, adapter, chat_template, trust_remote_code, allow_pickle
    )
    from llmctl.services import serve as service  # torch, transformers and FastAPI begin here

    where = ServeOptions(host, port, tuple(served_name or ()), drain)
    with ExitStack() as loading:
        progress = loading.enter_context(render.progress())

        def ready(url: str, info: EngineInfo) -> None:
            loading.close()
            render.engine_summary(info)
            render.note(f"OpenAI-compatible API at {url}/v1 (Ctrl-C ends)")

        ended_by = service.serve(spec, where, ready, progress)
    if ended_by == signal.SIGINT:
        raise typer.Exit(130)
