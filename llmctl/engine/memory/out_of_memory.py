"""The error for a model that does not fit, with the settings that would fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llmctl.engine.memory.estimate import format_gib
from llmctl.engine.memory.request import CONTEXT_STEP, MemoryRequest
from llmctl.errors import OutOfMemoryError
from llmctl.types import Quant, WeightsPlan

_MIN_SUGGESTED_CONTEXT = 512
"""Tokens."""
_NOTHING_FITS = (
    "no setting makes it fit, not even --quant 4bit with a short context: "
    "choose a smaller model (`llmctl models list`), or close other programs"
)


def out_of_memory_error(request: MemoryRequest) -> OutOfMemoryError:
    """Return the error for one row of the shortest context, with the settings that would fit."""
    context, target = request.min_context, request.target
    kv, activations = request.row_bytes(context), request.activation_bytes(context)
    row = f"one row of {context:,} tokens"
    if request.kv_limit < min(kv, target.free_bytes):
        is_set = request.limits.kv_bytes is not None
        limit = "--kv-memory gives it" if is_set else "half of the free memory is"
        message = (
            f"the KV cache of {row} needs {format_gib(kv)} and {limit} "
            f"{format_gib(request.kv_limit)}; "
            f"{target.device} has {format_gib(target.free_bytes)} free"
        )
    else:
        needed = request.weight_bytes + kv + activations + target.reserve_bytes
        message = (
            f"{row} needs {format_gib(needed)} and {target.device} has "
            f"{format_gib(target.free_bytes)} free: weights {format_gib(request.weight_bytes)}, "
            f"KV cache {format_gib(kv)}, activations {format_gib(activations)}, "
            f"reserve {format_gib(target.reserve_bytes)}"
        )
    return OutOfMemoryError(message, hint=_suggest_options(request))


def weights_out_of_memory_error(
    plan: WeightsPlan, quant: Quant, device: str
) -> OutOfMemoryError | None:
    """Return the error for weights that do not fit; `None` if they fit."""
    if plan.weights_bytes + plan.reserve_bytes <= plan.free_bytes:
        return None
    fitting = [other.quant for other in plan.alternatives if other.fits and other.quant != quant]
    return OutOfMemoryError(
        f"the weights need {format_gib(plan.weights_bytes)}, "
        f"the reserve {format_gib(plan.reserve_bytes)}, "
        f"and {device} has {format_gib(plan.free_bytes)} free",
        hint=f"try --quant {fitting[0]}" if fitting else _NOTHING_FITS,
    )


_Change = Callable[[MemoryRequest], tuple[str, MemoryRequest] | None]
"""Returns an option and the request with it; `None` if the option changes nothing."""


def _suggest_options(request: MemoryRequest) -> str:
    """Return the hint: each single option that makes the model fit, else a combination."""
    single = (_use_4bit, _shorten_context, _quantise_cache, _enlarge_cache)
    if fitting := [text for change in single if (text := _apply(request, (change,)))]:
        return f"try {', or '.join(fitting)}"
    for changes in (
        (_use_4bit, _quantise_cache),
        (_use_4bit, _shorten_context),
        (_use_4bit, _enlarge_cache),
        (_use_4bit, _quantise_cache, _shorten_context),
    ):
        if text := _apply(request, changes):
            return f"try {text}"
    return _NOTHING_FITS


def _apply(request: MemoryRequest, changes: Sequence[_Change]) -> str:
    """Apply changes one after the other; return their options if the result fits, else nothing."""
    options = []
    for change in changes:
        if (changed := change(request)) is not None:
            option, request = changed
            options.append(option)
    return " ".join(options) if request.planned_context else ""


def _use_4bit(request: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    if request.quant == "4bit" or not request.shape.quantisable:
        return None
    return "--quant 4bit", replace(request, quant="4bit")


def _shorten_context(request: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    context = request.max_context // CONTEXT_STEP * CONTEXT_STEP
    if not _MIN_SUGGESTED_CONTEXT <= context < request.min_context:
        return None
    limits = replace(request.limits, context_length=context)
    return f"--context-length {context}", replace(request, limits=limits)


def _quantise_cache(request: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    if request.limits.kv_quant == "8bit" or not request.shape.batched:
        return None
    return "--kv-cache-dtype 8bit", replace(
        request, limits=replace(request.limits, kv_quant="8bit")
    )


def _enlarge_cache(request: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    if request.limits.kv_bytes is None:
        return None
    mib = -(-request.row_bytes(request.min_context) // 2**20)
    limits = replace(request.limits, kv_bytes=mib * 2**20)
    return f"--kv-memory {mib}MiB", replace(request, limits=limits)
