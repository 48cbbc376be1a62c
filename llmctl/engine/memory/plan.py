"""The memory plan: context length, number of rows and KV cache for the free memory.

First comes the context length of one row; what is left holds more rows. All rows share one budget
of keys and values, so their number only limits how many run at once.
"""

from dataclasses import replace

from llmctl.engine.memory.estimate import estimate_weight_bytes, format_gib
from llmctl.engine.memory.out_of_memory import out_of_memory_error
from llmctl.engine.memory.request import QUANTS, MemoryRequest, TargetDevice
from llmctl.types import MemoryPlan, Quant, QuantFit, WeightsPlan


def plan_memory(request: MemoryRequest) -> MemoryPlan:
    """Divide the free memory.

    Raises:
        OutOfMemoryError: not even one row of the shortest acceptable context fits; the message has
            the sizes, and the hint the settings that fit.
    """
    if not request.planned_context:
        raise out_of_memory_error(request)
    return estimate_plan(request)


def estimate_plan(request: MemoryRequest) -> MemoryPlan:
    """Divide the free memory; the context length is 0 if the model does not fit."""
    context = request.planned_context
    per_token = request.kv_bytes(1)
    budget = tokens = 0
    if context:
        # A size set by the user may exceed what the rows need: the rest caches prefixes.
        is_set = request.limits.kv_bytes is not None
        available = request.available_kv_bytes(context)
        row = request.row_bytes(context)
        budget = available if is_set else min(available, request.rows * row)
        states = min(budget // row, request.rows) * request.state_bytes if row else 0
        batched = request.shape.batched and per_token
        tokens = (budget - states) // per_token if batched else context
    return MemoryPlan(
        weights_bytes=request.weight_bytes,
        kv_bytes_per_token=per_token,
        activation_bytes=request.activation_bytes(context or request.min_context),
        free_bytes=request.target.free_bytes,
        reserve_bytes=request.target.reserve_bytes,
        context_length=context,
        max_rows=request.rows,
        kv_budget_bytes=budget,
        kv_budget_tokens=tokens,
        alternatives=tuple(
            QuantFit(
                other.quant, other.weight_bytes, other.planned_context > 0, other.planned_context
            )
            for other in _by_quant(request)
        ),
        notes=tuple(_notes(request, context, budget)),
    )


def plan_weights(
    linear: int, other: int, target: TargetDevice, quant: Quant, *, stored_bytes: int | None = None
) -> WeightsPlan:
    """Plan the weights alone, for a model whose config is not on this machine.

    Args:
        linear: number of `ModelShape.linear_parameters`.
        other: number of `ModelShape.other_parameters`.
        target: the device.
        quant: chosen for the weights.
        stored_bytes: size of weights that are quantised as published.
    """
    available = target.free_bytes - target.reserve_bytes
    int4 = target.kind == "cpu"
    sizes = {
        q: estimate_weight_bytes(linear, other, target.weight_itemsize, q, int4=int4)
        for q in QUANTS
    }
    if stored_bytes is not None and target.kind == "cuda":
        sizes = {"none": stored_bytes}
    return WeightsPlan(
        weights_bytes=sizes.get(quant, sizes["none"]),
        free_bytes=target.free_bytes,
        reserve_bytes=target.reserve_bytes,
        alternatives=tuple(
            QuantFit(q, size, size <= available, None if size <= available else 0)
            for q, size in sizes.items()
        ),
        notes=(
            "its config.json is not on this machine (`llmctl models pull` downloads it): "
            "KV per token, activations and the context that fits are unknown",
        ),
    )


def _by_quant(request: MemoryRequest) -> list[MemoryRequest]:
    if not request.shape.quantisable:
        return [request]
    return [replace(request, quant=quant) for quant in QUANTS]


def _notes(request: MemoryRequest, context: int, budget: int) -> list[str]:
    shape, limits = request.shape, request.limits
    notes = []
    if limits.context_length is not None and limits.context_length > shape.context_length:
        notes.append(
            f"the model supports {shape.context_length:,} tokens of context, "
            f"not {limits.context_length:,}"
        )
    if 0 < context < request.requested_context:
        notes.append(f"memory holds {context:,} of {request.requested_context:,} tokens of context")
    if context and limits.kv_bytes is not None and budget < limits.kv_bytes:
        notes.append(
            f"{format_gib(budget)} of the {format_gib(limits.kv_bytes)} for the KV cache fit"
        )
    if states := request.state_bytes:
        notes.append(
            f"{shape.cache.stateful_layers} layers keep a state of fixed size: "
            f"{format_gib(states)} per row, with saved copies"
        )
    elif shape.cache.stateful_layers:
        notes.append(
            f"{shape.cache.stateful_layers} layers keep a state of fixed size per row, "
            "which is counted when the model is loaded"
        )
    if limits.max_rows is not None and request.rows < limits.max_rows:
        notes.append(f"this model runs one request at a time, not {limits.max_rows}")
    return notes
