"""What is missing where a model does not fit, and which settings would do with what there is?"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llmctl.engine.memory.estimate import format_gib
from llmctl.engine.memory.request import CONTEXT_STEP, MemoryRequest
from llmctl.errors import OutOfMemoryError
from llmctl.types import Quant, WeightsPlan

_LEAST_SUGGESTED = 512
"""Tokens: no shorter context is worth a hint."""
_NO_WAY = (
    "no setting makes it fit, not even --quant 4bit with a short context: "
    "choose a smaller model (`llmctl models list`), or close other programs"
)


def out_of_memory_error(case: MemoryRequest) -> OutOfMemoryError:
    """Say what is missing for the least row, and which settings would do with what there is."""
    least, machine = case.least, case.machine
    kv, activations = case.kv(least), case.activations(least)
    row = f"one row of {least:,} tokens"
    if case.kv_most < min(kv, machine.free_bytes):
        asked = case.limits.kv_bytes is not None
        bound = "--kv-memory gives it" if asked else "half of the free memory is"
        message = (
            f"the KV cache of {row} needs {format_gib(kv)} and {bound} {format_gib(case.kv_most)}; "
            f"{machine.device} has {format_gib(machine.free_bytes)} free"
        )
    else:
        needed = case.weights + kv + activations + machine.reserve_bytes
        message = (
            f"{row} needs {format_gib(needed)} and {machine.device} has "
            f"{format_gib(machine.free_bytes)} free: weights {format_gib(case.weights)}, "
            f"KV cache {format_gib(kv)}, activations {format_gib(activations)}, "
            f"reserve {format_gib(machine.reserve_bytes)}"
        )
    return OutOfMemoryError(message, hint=_way_out(case))


def weights_out_of_memory_error(
    plan: WeightsPlan, quant: Quant, device: str
) -> OutOfMemoryError | None:
    """Say what is missing for the weights alone; `None` if nothing is."""
    if plan.weights_bytes + plan.reserve_bytes <= plan.free_bytes:
        return None
    fitting = [other.quant for other in plan.alternatives if other.fits and other.quant != quant]
    return OutOfMemoryError(
        f"the weights need {format_gib(plan.weights_bytes)}, "
        f"the reserve {format_gib(plan.reserve_bytes)}, "
        f"and {device} has {format_gib(plan.free_bytes)} free",
        hint=f"try --quant {fitting[0]}" if fitting else _NO_WAY,
    )


_Change = Callable[[MemoryRequest], tuple[str, MemoryRequest] | None]
"""Returns an option and the case with it; `None` where it would change nothing."""


def _way_out(case: MemoryRequest) -> str:
    """Plan what a person could change: name each setting that would do, else several together."""
    singles = (_four_bits, _shorter, _smaller_cache, _larger_cache)
    if alone := [options for change in singles if (options := _options(case, (change,)))]:
        return f"try {', or '.join(alone)}"
    for changes in (
        (_four_bits, _smaller_cache),
        (_four_bits, _shorter),
        (_four_bits, _larger_cache),
        (_four_bits, _smaller_cache, _shorter),
    ):
        if options := _options(case, changes):
            return f"try {options}"
    return _NO_WAY


def _options(case: MemoryRequest, changes: Sequence[_Change]) -> str:
    """Make the changes one after the other; return their options, nothing if it still is short."""
    options = []
    for change in changes:
        if (made := change(case)) is not None:
            option, case = made
            options.append(option)
    return " ".join(options) if case.context else ""


def _four_bits(case: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    if case.quant == "4bit" or not case.shape.quantisable:
        return None
    return "--quant 4bit", replace(case, quant="4bit")


def _shorter(case: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    reach = case.reach // CONTEXT_STEP * CONTEXT_STEP
    if not _LEAST_SUGGESTED <= reach < case.least:
        return None
    limits = replace(case.limits, context_length=reach)
    return f"--context-length {reach}", replace(case, limits=limits)


def _smaller_cache(case: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    if case.limits.kv_quant == "8bit" or not case.shape.batched:
        return None
    return "--kv-quant 8bit", replace(case, limits=replace(case.limits, kv_quant="8bit"))


def _larger_cache(case: MemoryRequest) -> tuple[str, MemoryRequest] | None:
    if case.limits.kv_bytes is None:
        return None
    mib = -(-case.kv(case.least) // 2**20)
    limits = replace(case.limits, kv_bytes=mib * 2**20)
    return f"--kv-memory {mib}MiB", replace(case, limits=limits)
