"""How is it shown what a model would need, and whether it fits?"""

from dataclasses import asdict

from llmctl.cli import render
from llmctl.errors import OutOfMemoryError
from llmctl.types import Estimate, MemoryPlan, QuantFit


def print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    """Print what would fit; raise `OutOfMemoryError` after it if the model does not."""
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
    for other in plan.alternatives:
        lines[f"--quant {other.quant}"] = (
            f"weights {format_gib(other.weights_bytes)}, {_reach(other)}"
        )
    render.print_fields(lines)
    for line in plan.notes:
        render.print_note(f"note: {line}")


def _reach(other: QuantFit) -> str:
    if not other.fits:
        return "does not fit"
    if other.context_length is None:
        return "fits, context unknown"
    return f"fits, context {other.context_length:,} tokens"
