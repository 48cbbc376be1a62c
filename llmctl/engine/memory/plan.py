"""How is the free memory shared out: how long a context, how many rows, how much KV cache?

The context that one row may have comes first; what is left after it holds more rows. Rows share
one budget of keys and values, so their number only bounds how many run at once.
"""

from dataclasses import replace

from llmctl.engine.memory.estimate import estimate_weight_bytes, format_gib
from llmctl.engine.memory.out_of_memory import out_of_memory_error
from llmctl.engine.memory.request import QUANTS, MemoryRequest, TargetDevice
from llmctl.types import MemoryPlan, Quant, QuantFit, WeightsPlan


def plan_memory(case: MemoryRequest) -> MemoryPlan:
    """Share out the free memory.

    Raises:
        OutOfMemoryError: not one row fits, of the context that was asked for or of
            `MIN_CONTEXT`; with the figures, and the settings that would fit.
    """
    if not case.context:
        raise out_of_memory_error(case)
    return estimate_plan(case)


def estimate_plan(case: MemoryRequest) -> MemoryPlan:
    """Share out the free memory, or say with a context of 0 that it does not suffice."""
    context = case.context
    per_token = case.kv(1)
    budget = tokens = 0
    if context:
        # A person's own figure may exceed what the rows need: it also keeps prefixes.
        asked = case.limits.kv_bytes is not None
        left = case.left_for_kv(context)
        budget = left if asked else min(left, case.rows * case.kv(context))
        tokens = budget // per_token if case.shape.batched else context
    return MemoryPlan(
        weights_bytes=case.weights,
        kv_bytes_per_token=per_token,
        activation_bytes=case.activations(context or case.least),
        free_bytes=case.machine.free_bytes,
        reserve_bytes=case.machine.reserve_bytes,
        context_length=context,
        max_rows=case.rows,
        kv_budget_bytes=budget,
        kv_budget_tokens=tokens,
        alternatives=tuple(
            QuantFit(other.quant, other.weights, other.context > 0, other.context)
            for other in _by_quant(case)
        ),
        notes=tuple(_notes(case, context, budget)),
    )


def plan_weights(linear: int, other: int, machine: TargetDevice, quant: Quant) -> WeightsPlan:
    """Say of parameter counts alone whether the weights fit; the counts are as in `ModelShape`."""
    room = machine.free_bytes - machine.reserve_bytes
    int4 = machine.kind == "cpu"
    sizes = {q: estimate_weight_bytes(linear, other, machine.dtype, q, int4=int4) for q in QUANTS}
    return WeightsPlan(
        weights_bytes=sizes[quant],
        free_bytes=machine.free_bytes,
        reserve_bytes=machine.reserve_bytes,
        alternatives=tuple(
            QuantFit(q, size, size <= room, None if size <= room else 0)
            for q, size in sizes.items()
        ),
        notes=(
            "its config.json is not here (`llmctl models pull` fetches it): KV per token, "
            "activations and the context that fits are unknown",
        ),
    )


def _by_quant(case: MemoryRequest) -> list[MemoryRequest]:
    if not case.shape.quantisable:
        return [case]
    return [replace(case, quant=quant) for quant in QUANTS]


def _notes(case: MemoryRequest, context: int, budget: int) -> list[str]:
    shape, limits = case.shape, case.limits
    notes = []
    if limits.context_length is not None and limits.context_length > shape.context_length:
        notes.append(
            f"the model was made for {shape.context_length:,} tokens of context, "
            f"not for {limits.context_length:,}"
        )
    if 0 < context < case.longest:
        notes.append(f"memory holds {context:,} of {case.longest:,} tokens of context")
    if context and limits.kv_bytes is not None and budget < limits.kv_bytes:
        notes.append(f"of {format_gib(limits.kv_bytes)} for the KV cache {format_gib(budget)} fit")
    if shape.stateful_layers:
        notes.append(
            f"{shape.stateful_layers} layers keep a state of fixed size per row, "
            "which is not counted"
        )
    if limits.max_rows is not None and case.rows < limits.max_rows:
        notes.append(f"this model runs one request at a time, not {limits.max_rows}")
    return notes
