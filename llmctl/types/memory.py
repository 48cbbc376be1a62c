"""How the free memory is shared out before a model is loaded."""

from dataclasses import dataclass

from llmctl.types.model import KVQuant, Quant


@dataclass(frozen=True, slots=True)
class QuantFit:
    """What one `--quant` would make of the same memory."""

    quant: Quant
    weights_bytes: int
    fits: bool
    context_length: int | None
    """Tokens a row would reach, 0 where it does not fit; `None` is unknown."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the free memory is shared out before a model is loaded. All sizes in bytes.

    `weights + activations + reserve + kv_budget <= free` if it fits. If it does not,
    `context_length` and both budgets are 0 and the other sizes are those of the least row.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    """Keys and values of one token in all layers that have any."""
    activation_bytes: int
    """The most that one forward pass and the choice of its tokens hold at once."""
    free_bytes: int
    reserve_bytes: int
    """Left to the driver, to holes between allocations, to other programs."""
    context_length: int
    """Tokens of prompt and reply together that one row can have."""
    max_rows: int
    """Rows that run at the same time; they share the one KV budget."""
    kv_budget_bytes: int
    kv_budget_tokens: int
    """Tokens of all rows and of prefixes kept for reuse."""
    alternatives: tuple[QuantFit, ...]
    notes: tuple[str, ...] = ()
    """What a person should know of this plan, a sentence each."""


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """What can be said before a model's config is here: its weights, nothing of its context."""

    weights_bytes: int
    free_bytes: int
    reserve_bytes: int
    alternatives: tuple[QuantFit, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `llmctl serve --estimate` tells of a model that is not loaded."""

    model_id: str
    device: str
    dtype: str
    quant: Quant
    kv_quant: KVQuant
    plan: MemoryPlan | WeightsPlan
    shortage: str | None = None
    """Why it does not fit."""
    hint: str = ""
    """What would fit in its place."""
