"""Memory plans of a model before it is loaded."""

from dataclasses import dataclass

from llmctl.types.model import KVQuant, Quant


@dataclass(frozen=True, slots=True)
class QuantFit:
    """The plan for one value of `--quant` with the same memory."""

    quant: Quant
    weights_bytes: int
    fits: bool
    context_length: int | None
    """Tokens of a sequence, 0 if the weights do not fit; `None` if unknown."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Division of the free memory of a device. All sizes in bytes.

    If the model fits, `weights + activations + reserve + kv_budget <= free`. If it does not,
    `context_length` and both budgets are 0, and the other sizes are those of the shortest context.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    """Keys and values of one token in all layers with a KV cache."""
    activation_bytes: int
    """Peak of one forward pass with sampling."""
    free_bytes: int
    reserve_bytes: int
    """Left for the driver, fragmentation and other programs."""
    context_length: int
    """Tokens of prompt and reply together, per sequence."""
    max_rows: int
    """Sequences that run at the same time; they share the KV budget."""
    kv_budget_bytes: int
    kv_budget_tokens: int
    """Tokens of all sequences and of cached prefixes."""
    alternatives: tuple[QuantFit, ...]
    notes: tuple[str, ...] = ()
    """Notes for the user, a sentence each."""


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """Plan of the weights alone, for a model whose config is not on this machine."""

    weights_bytes: int
    free_bytes: int
    reserve_bytes: int
    alternatives: tuple[QuantFit, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Result of `llmctl serve --estimate`."""

    model_id: str
    device: str
    dtype: str
    quant: Quant
    kv_quant: KVQuant
    plan: MemoryPlan | WeightsPlan
    shortage: str | None = None
    """Why the model does not fit; `None` if it fits."""
    hint: str = ""
    """Settings with which the model fits, if there are any."""
