"""Specification of a model, and information about a loaded one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from llmctl.errors import ConfigError

Quant = Literal["none", "4bit", "8bit"]
KVQuant = Literal["none", "8bit"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
ExecutionPath = Literal["fused", "batched", "serial"]
"""How a model runs: by the engine's own layers, by its own layers with all sequences in one step,
or one request at a time."""


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"unknown {name} {value!r}", hint=f"one of: {', '.join(allowed)}")


DEFAULT_MAX_ROWS = 16
"""Default number of sequences that run at the same time."""


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Limits that the user sets; the memory plan chooses the others."""

    context_length: int | None = None
    """Tokens of prompt and reply together."""
    max_rows: int | None = None
    """Sequences that run at the same time."""
    kv_bytes: int | None = None
    """Size of the KV cache of all sequences and cached prefixes."""
    kv_quant: KVQuant = "none"

    def __post_init__(self) -> None:
        for name in ("context_length", "max_rows", "kv_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        _check_choice("kv_quant", self.kv_quant, get_args(KVQuant))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model and how to load it."""

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
    tool_call_parser: str | None = None
    """Format of tool calls, `none` for none; without it the template decides."""
    reasoning_parser: str | None = None
    """Format of reasoning, `none` for none; without it the template decides."""
    trust_remote_code: bool = False
    allow_pickle: bool = False
    """Also accept `.bin` weights, which can run code when they are read."""
    limits: MemoryLimits = MemoryLimits()

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("the model name is empty", hint="try `llmctl models list`")
        _check_choice("quant", self.quant, get_args(Quant))
        _check_choice("dtype", self.dtype, get_args(DType))


@dataclass(frozen=True, slots=True)
class ApiEndpoint:
    """A model on an OpenAI-compatible server."""

    base_url: str
    model: str | None = None
    """Its name on the server; `None` is the first model that the server lists."""
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ResponseFormats:
    """Names of the formats in which a model's responses are read."""

    tool_calls: str | None
    reasoning: str | None
    tools_in_words: bool
    """Whether the prompt describes tools in words, because the chat template does not have them."""

    def __str__(self) -> str:
        tools = "tool calls not read"
        if self.tool_calls is not None:
            words = ", tools described in words" if self.tools_in_words else ""
            tools = f"tool calls in the format {self.tool_calls}{words}"
        return f"{tools}; reasoning {self.reasoning or 'not separated'}"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """A loaded model, or a model on a server."""

    model_id: str
    backend: str
    device: str
    dtype: str
    quant: Quant
    context_length: int
    """Tokens of prompt and reply together; 0 if a server does not report it."""
    parameter_count: int
    """0 for a model on a server."""
    weight_bytes: int
    has_chat_template: bool
    template_fingerprint: str | None
    weights_fingerprint: str | None = None
    """Of the base model's weights, as `weight_files.fingerprint` makes it; `None` on a server."""
    adapter_fingerprint: str | None = None
    """Of the adapter that was loaded with the model, if any."""
    logged_model_id: str | None = None
    """Id of the LoggedModel of these weights in the tracking store."""
    training_run_id: str | None = None
    """Id of the run in the tracking store that trained these weights."""
    execution_path: ExecutionPath | None = None
    """`None` on a server that does not report it."""
    execution_reason: str = ""
    """Why the model runs this way."""
    response_formats: ResponseFormats | None = None
    """`None` for a model on a server, and without a chat template."""
    notes: tuple[str, ...] = ()
    """Notes for the user, a sentence each."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """Load and health of an engine."""

    alive: bool
    """Whether the engine processes requests."""
    last_step_age_s: float
    """Seconds since the last step of a busy engine; 0 for an idle one."""
    running: int
    """Sequences that run, and the scoring or embedding request in progress."""
    waiting: int
    """Sequences in the queue, and queued scoring or embedding requests."""
    max_rows: int
    kv_used_tokens: int = 0
    kv_budget_tokens: int = 0
