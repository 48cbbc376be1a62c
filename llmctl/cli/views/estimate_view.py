"""View of `llmctl serve --estimate`: the memory of a model, and whether it fits."""

from dataclasses import asdict

from llmctl.cli import render
from llmctl.errors import OutOfMemoryError
from llmctl.types import Estimate, MemoryPlan, QuantFit


def print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    """Print the memory plan.

    Raises:
        OutOfMemoryError: the model does not fit; raised after the plan is printed.
    """
    if as_json:
        render.print_json(asdict(estimate))
    else:
        _print_estimate(estimate)
    if estimate.shortage is not None:
        raise OutOfMemoryError(estimate.shortage, hint=estimate.hint)


def _print_estimate(estimate: Estimate) -> None:
    from llmctl.engine.memory.estimate import format_gib

    plan = estimate.plan
    parts = {f"weights, {estimate.quant}": plan.weights_bytes}
    if isinstance(plan, MemoryPlan):
        parts |= {"KV cache": plan.kv_budget_bytes, "activations": plan.activation_bytes}
    parts |= {"reserve": plan.reserve_bytes, f"free, {estimate.device}": plan.free_bytes}
    render.print_table(
        ("PART", "BYTES"), [(part, format_gib(size)) for part, size in parts.items()]
    )
    lines = {}
    if isinstance(plan, MemoryPlan) and plan.context_length:
        rows = "1 row" if plan.max_rows == 1 else f"{plan.max_rows} rows"
        lines["fits"] = (
            f"context {plan.context_length:,} tokens, {rows}, "
            f"KV for {plan.kv_budget_tokens:,} tokens of {format_gib(plan.kv_bytes_per_token)}"
        )
    for alternative in plan.alternatives:
        lines[f"--quant {alternative.quant}"] = (
            f"weights {format_gib(alternative.weights_bytes)}, {_describe_fit(alternative)}"
        )
    render.print_fields(lines)
    for line in plan.notes:
        render.print_note(f"note: {line}")


def _describe_fit(alternative: QuantFit) -> str:
    if not alternative.fits:
        return "does not fit"
    if alternative.context_length is None:
        return "fits, context unknown"
    return f"fits, context {alternative.context_length:,} tokens"
