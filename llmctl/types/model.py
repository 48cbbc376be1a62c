"""Which model, how it is loaded, and what was loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from llmctl.errors import ConfigError

Quant = Literal["none", "4bit", "8bit"]
KVQuant = Literal["none", "8bit"]
DType = Literal["auto", "bfloat16", "float16", "float32"]


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"unknown {name} {value!r}", hint=f"one of: {', '.join(allowed)}")


DEFAULT_MAX_ROWS = 16
"""Replies written at the same time where nobody says how many."""


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """What a person asks of the memory; the plan chooses what is `None`."""

    context_length: int | None = None
    """Tokens of prompt and reply together."""
    max_rows: int | None = None
    """Replies that are written at the same time."""
    kv_bytes: int | None = None
    """For the keys and values of all rows together, and of prefixes kept for reuse."""
    kv_quant: KVQuant = "none"

    def __post_init__(self) -> None:
        for name in ("context_length", "max_rows", "kv_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        _check_choice("kv_quant", self.kv_quant, get_args(KVQuant))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to load, and how."""

    model: str
    """Catalogue name, hub id (`owner/name` or `owner/name@revision`), folder or `.gguf` file."""
    revision: str | None = None
    adapter: str | None = None
    quant: Quant = "none"
    dtype: DType = "auto"
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    chat_template: str | None = None
    """Path of a Jinja file used in place of the model's own chat template."""
    trust_remote_code: bool = False
    allow_pickle: bool = False
    """Also accept `.bin` weights, which can run code while they are read."""
    limits: MemoryLimits = MemoryLimits()

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("the model name is empty", hint="try `llmctl models list`")
        _check_choice("quant", self.quant, get_args(Quant))
        _check_choice("dtype", self.dtype, get_args(DType))


@dataclass(frozen=True, slots=True)
class ApiEndpoint:
    """A model behind an OpenAI-compatible server."""

    base_url: str
    model: str | None = None
    """The server's name of it; `None` is the first one that it lists."""
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded and where."""

    model_id: str
    backend: str
    device: str
    dtype: str
    quant: Quant
    context_length: int
    """Tokens of prompt and reply together; 0 where a server does not say."""
    parameter_count: int
    """0 of a model that others run."""
    weight_bytes: int
    has_chat_template: bool
    template_fingerprint: str | None
    weights_fingerprint: str | None = None
    """Of the base model's weights, as `weight_files.fingerprint` makes it; `None` on a server."""
    adapter_fingerprint: str | None = None
    """Of the adapter that was loaded with the model, if any."""
    logged_model_id: str | None = None
    """The LoggedModel as which the tracking store knows these weights."""
    notes: tuple[str, ...] = ()
    """What a person should know of this set-up, a sentence each."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """How an engine is doing at this moment."""

    alive: bool
    """Whether requests are still worked on."""
    last_step_age_s: float
    """Seconds since the last step, of an engine that has work; 0 of one that has none."""
    running: int
    """Replies being written, each choice counted, and the request to score or embed at work."""
    waiting: int
    """Replies in line for a row or for room in the cache, and requests to score or embed."""
    max_rows: int
    kv_used_tokens: int = 0
    kv_budget_tokens: int = 0
