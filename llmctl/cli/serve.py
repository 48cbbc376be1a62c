"""`llmctl serve`: an OpenAI-compatible server for one model, or what it would need."""

import re
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmctl.cli import options, render
from llmctl.cli.views.estimate_view import print_estimate
from llmctl.config import ContextOverflow, ServeConfig
from llmctl.errors import ConfigError
from llmctl.types import DEFAULT_MAX_ROWS, EngineInfo, KVQuant, MemoryLimits

DEFAULT = ServeConfig()
LIMITS = MemoryLimits()
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _size(text: str) -> int:
    """Read a number of bytes as a person writes it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; write 512MiB, 8GiB or 8GB")
    return int(float(found[1]) * _UNITS[found[2]])


def _adapters(given: list[str]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Tell the adapter of the model itself from those that have names."""
    named: dict[str, str] = {}
    own: list[str] = []
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", name):
            own.append(text)
        elif name in named:
            raise ConfigError(f"two adapters are named {name!r}")
        else:
            named[name] = folder
    if len(own) > 1:
        raise ConfigError(
            f"the model itself can have one adapter, not {len(own)}",
            hint="name them: --adapter NAME=FOLDER",
        )
    return own[0] if own else None, tuple(named.items())


def _keys_in(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys in {file}: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{file} has no API key", hint="put one on a line of its own")
    return keys


def serve(
    model: options.ModelOpt = options.DEFAULT_MODEL_NAME,
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
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            envvar="LLMCTL_API_KEY",
            help="Key that clients must send; may be repeated, and the variable may hold several "
            "with spaces between them.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="File with a key on each line; # begins a comment."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without any key.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            help="Origin whose web pages may use the server, such as https://chat.example; "
            "may be repeated.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            envvar="LLMCTL_ALLOWED_HOST",
            help="Further host name that clients may use for this server, such as llm.example.com "
            "or *.example.com; may be repeated, and the variable may hold several with spaces "
            "between them. Without an API key, other names than localhost and --host are refused.",
        ),
    ] = None,
    ssl_certfile: Annotated[
        Path | None, typer.Option("--ssl-certfile", help="Certificate, to serve HTTPS.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option("--ssl-keyfile", help="Key of the certificate.")
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", min=0, help="Requests that may wait; more are refused (429)."),
    ] = DEFAULT.max_queue,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            "--request-timeout", min=0.1, help="Seconds a reply may take.  [default: no limit]"
        ),
    ] = None,
    max_body: Annotated[
        int | None,
        typer.Option(
            "--max-body", parser=_size, metavar="SIZE", help="Largest request.  [default: 10MiB]"
        ),
    ] = None,
    ping: Annotated[
        float,
        typer.Option("--ping", min=0, help="A stream silent for so many seconds says it lives."),
    ] = DEFAULT.ping_s,
    overflow: Annotated[
        ContextOverflow,
        typer.Option("--overflow", help="What to do with a conversation longer than the context."),
    ] = DEFAULT.overflow,
    request_log: Annotated[
        bool, typer.Option(help="Write a JSON line for every request to stderr.")
    ] = DEFAULT.log_requests,
    log_content: Annotated[
        bool, typer.Option("--log-content", help="Prompts and replies too, in those lines.")
    ] = False,
    track: Annotated[
        bool, typer.Option("--track", help="Keep a run of this server (see `llmctl runs`).")
    ] = False,
    tracking_uri: options.TrackingUriOpt = None,
    trace_share: Annotated[
        float,
        typer.Option(
            "--trace-share", min=0, max=1, help="Part of the requests to keep a trace of."
        ),
    ] = DEFAULT.trace_share,
    device: options.DeviceOpt = "auto",
    dtype: options.DTypeOpt = "auto",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="[NAME=]FOLDER",
            help="LoRA adapter: NAME=FOLDER is served as MODEL:NAME, FOLDER alone is put on the "
            "model itself; may be repeated.",
        ),
    ] = None,
    adapter_dir: Annotated[
        Path | None,
        typer.Option(
            "--adapter-dir",
            exists=True,
            file_okay=False,
            help="Folder of adapters that clients may load by name while the server runs.",
        ),
    ] = None,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    allow_pickle: options.PickleOpt = False,
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context-length",
            min=1,
            help="Tokens of prompt and reply together.  [default: the model's, if memory holds it]",
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(
            "--max-rows",
            min=1,
            help=f"Replies written at the same time.  [default: {DEFAULT_MAX_ROWS}]",
        ),
    ] = None,
    kv_memory: Annotated[
        int | None,
        typer.Option(
            "--kv-memory",
            parser=_size,
            metavar="SIZE",
            help="For the KV cache, such as 2GiB.  [default: what is left, as far as of use]",
        ),
    ] = None,
    kv_quant: Annotated[
        KVQuant, typer.Option("--kv-quant", help="Keys and values in 8 bits.")
    ] = LIMITS.kv_quant,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what memory it would take, and leave.")
    ] = False,
    free: Annotated[
        int | None,
        typer.Option(
            "--free",
            parser=_size,
            metavar="SIZE",
            help="With --estimate: for a machine with so much free memory, such as 8GiB; "
            "a CUDA card unless --device says otherwise.",
        ),
    ] = None,
    as_json: options.JsonOpt = False,
) -> None:
    """Serve a model to any OpenAI client.

    The API is at http://HOST:PORT/v1. Ctrl-C or SIGTERM lets running replies end, then leaves.
    """
    own, named = _adapters(adapter or [])
    spec = replace(
        options.model_spec(
            model, quant, device, dtype, own, chat_template, trust_remote_code, allow_pickle
        ),
        limits=MemoryLimits(context_length, max_rows, kv_memory, kv_quant),
    )
    if estimate:
        from llmctl.services.estimate import estimate as estimated

        print_estimate(estimated(spec, free), as_json=as_json)
        return
    if free is not None or as_json:
        raise ConfigError("--free and --json are only for --estimate", hint="add --estimate")
    where = ServeConfig(
        host=host,
        port=port,
        served_names=tuple(served_name or ()),
        adapters=named,
        adapter_dir=None if adapter_dir is None else str(adapter_dir),
        drain_s=drain,
        api_keys=(*(api_key or ()), *_keys_in(api_key_file)),
        insecure=insecure,
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=tuple(allowed_host or ()),
        ssl_certfile=None if ssl_certfile is None else str(ssl_certfile),
        ssl_keyfile=None if ssl_keyfile is None else str(ssl_keyfile),
        max_queue=max_queue,
        request_timeout_s=request_timeout,
        max_body_bytes=DEFAULT.max_body_bytes if max_body is None else max_body,
        ping_s=ping,
        overflow=overflow,
        log_requests=request_log,
        log_content=log_content,
        track=track or trace_share > 0,
        tracking_uri=tracking_uri,
        trace_share=trace_share,
    )
    from llmctl.services import serve as service  # torch, transformers and FastAPI begin here

    with ExitStack() as loading:
        progress = loading.enter_context(render.show_progress())

        def ready(url: str, info: EngineInfo) -> None:
            loading.close()
            render.print_engine_summary(info)
            render.print_note(f"OpenAI-compatible API at {url}/v1 (Ctrl-C ends)")

        ended_by = service.serve(spec, where, ready, progress, render.print_note)
    if ended_by == signal.SIGINT:
        raise typer.Exit(130)
