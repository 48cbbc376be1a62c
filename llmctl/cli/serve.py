"""`llmctl serve`: an OpenAI-compatible server for one model, or what it would need."""

import re
import signal
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Annotated

import typer

from llmctl.cli import options, render
from llmctl.config import ServeOptions
from llmctl.errors import ConfigError, OutOfMemoryError
from llmctl.types import (
    DEFAULT_ROWS,
    EngineInfo,
    Estimate,
    KVQuant,
    MemoryLimits,
    MemoryPlan,
    QuantFit,
)

DEFAULT = ServeOptions()
LIMITS = MemoryLimits()
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _size(text: str) -> int:
    """Read a number of bytes as a person writes it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size; write 512MiB, 8GiB or 8GB")
    return int(float(found[1]) * _UNITS[found[2]])


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
            help=f"Replies written at the same time.  [default: {DEFAULT_ROWS}]",
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
    spec = replace(
        options.model_spec(
            model, quant, device, dtype, adapter, chat_template, trust_remote_code, allow_pickle
        ),
        limits=MemoryLimits(context_length, max_rows, kv_memory, kv_quant),
    )
    if estimate:
        from llmctl.services.estimate import estimate as estimated

        _show_estimate(estimated(spec, free), as_json=as_json)
        return
    if free is not None or as_json:
        raise ConfigError("--free and --json are only for --estimate", hint="add --estimate")
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


def _show_estimate(estimate: Estimate, *, as_json: bool) -> None:
    """Print what would fit; raise `OutOfMemoryError` after it if the model does not."""
    if as_json:
        render.as_json(asdict(estimate))
    else:
        _print_estimate(estimate)
    if estimate.shortage is not None:
        raise OutOfMemoryError(estimate.shortage, hint=estimate.hint)


def _print_estimate(estimate: Estimate) -> None:
    from llmctl.engine.memory import gib

    plan = estimate.plan
    parts = {f"weights, {estimate.quant}": plan.weights_bytes}
    if isinstance(plan, MemoryPlan):
        parts |= {"KV cache": plan.kv_budget_bytes, "activations": plan.activation_bytes}
    parts |= {"reserve": plan.reserve_bytes, f"free, {estimate.device}": plan.free_bytes}
    render.table(("PART", "BYTES"), [(part, gib(size)) for part, size in parts.items()])
    lines = {}
    if isinstance(plan, MemoryPlan) and plan.context_length:
        rows = "1 row" if plan.max_rows == 1 else f"{plan.max_rows} rows"
        lines["fits"] = (
            f"context {plan.context_length:,} tokens, {rows}, "
            f"KV for {plan.kv_budget_tokens:,} tokens of {gib(plan.kv_bytes_per_token)}"
        )
    for other in plan.alternatives:
        lines[f"--quant {other.quant}"] = f"weights {gib(other.weights_bytes)}, {_reach(other)}"
    render.fields(lines)
    for line in plan.notes:
        render.note(f"note: {line}")


def _reach(other: QuantFit) -> str:
    if not other.fits:
        return "does not fit"
    if other.context_length is None:
        return "fits, context unknown"
    return f"fits, context {other.context_length:,} tokens"
