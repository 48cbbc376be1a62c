"""The values that cross rooms: frozen, and checked where they are made. Standard library only.

`None` means "not given" throughout; every other value, however falsy, is a value.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self, get_args

from llmctl.errors import ConfigError, RequestError

Quant = Literal["none", "4bit", "8bit"]
KVQuant = Literal["none", "8bit"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
Role = Literal["system", "user", "assistant", "developer", "tool"]
FinishReason = Literal["stop", "length"]


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"unknown {name} {value!r}", hint=f"one of: {', '.join(allowed)}")


DEFAULT_ROWS = 16
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


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must look like, token by token."""

    kind: Literal["json_schema", "json_object", "regex", "choice"]
    source: str = ""
    """The JSON schema as JSON text, or the regular expression."""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "choice" and (not self.choices or "" in self.choices):
            raise RequestError("a choice needs at least one text, none empty", param="choice")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when to end.

    Fields that are `None` are filled by `over`: the request's own, then the server's or command's
    options, then the model's `generation_config`, then `DEFAULT_SAMPLING`.
    """

    max_new_tokens: int | None = None
    """Upper bound per choice; `None` is all the context has room for."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Share of the likelihood to choose from; the likeliest token is always in it."""
    top_k: int | None = None
    """0 looks at the whole vocabulary."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Over prompt and reply, 1 is none (Keskar et al. 2019, CTRL)."""
    presence_penalty: float | None = None
    """Over the reply only, as OpenAI defines it."""
    frequency_penalty: float | None = None
    """Over the reply only, as OpenAI defines it."""
    logit_bias: tuple[tuple[int, float], ...] | None = None
    stop: tuple[str, ...] | None = None
    """Text that ends the reply; it is never part of the reply."""
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    """Choices per request."""
    logprobs: int | None = None
    """`None` is none; k >= 0 is the chosen token's log-probability and the k likeliest."""
    min_new_tokens: int | None = None
    """The reply does not end by itself before it has so many tokens."""
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            # Written so that NaN fails too.
            if value is not None and not low <= value <= high:
                raise RequestError(
                    f"{name} is {value}; it must be between {low} and {high}", param=name
                )
        if self.repetition_penalty == 0:
            raise RequestError(
                "repetition_penalty is 0; it must be above 0", param="repetition_penalty"
            )
        if self.stop is not None and "" in self.stop:
            raise RequestError("a stop string is empty", param="stop")

    def over(self, lower: "SamplingParams") -> Self:
        """Return these parameters with every `None` taken from `lower`."""
        given = {f.name: v for f in fields(self) if (v := getattr(lower, f.name)) is not None}
        missing = {name: v for name, v in given.items() if getattr(self, name) is None}
        return replace(self, **missing)


SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 2**31),
    "min_new_tokens": (0, 2**31),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, 128),
    "logprobs": (0, 20),
}
"""Inclusive bounds, OpenAI's where OpenAI has the field. `--help` and the server read them too."""

DEFAULT_SAMPLING = SamplingParams(
    temperature=0.7,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    n=1,
)
"""What applies where neither the request, the command nor the model says anything."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise RequestError(
                f"unknown role {self.role!r}", hint=f"one of: {', '.join(get_args(Role))}"
            )
        check_text(self.content, param="messages")


def check_text(text: str, *, param: str) -> None:
    """Refuse what no tokenizer can read: JSON admits half a surrogate pair, UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has half a surrogate pair at character {error.start}, which is no Unicode",
            param=param,
        ) from error


def new_request_id() -> str:
    """Return an id no other request of any process has."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to answer: a conversation or a raw prompt, never both."""

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids that go to the model as they are, without a chat template."""
    sampling: SamplingParams = SamplingParams()
    adapter: str | None = None
    request_id: str = field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise RequestError("a request has either messages or a prompt", param="messages")
        if isinstance(self.prompt, str):
            check_text(self.prompt, param="prompt")


@dataclass(frozen=True, slots=True)
class TokenProb:
    """A token and its natural log-probability under the model's raw distribution."""

    token_id: int
    token: str
    """The token as text; U+FFFD stands for bytes that are no whole character alone."""
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token, and the likeliest ones, likeliest first."""

    chosen: TokenProb
    top: tuple[TokenProb, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted as OpenAI counts them: the prompt once, all choices summed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """The next piece of one choice.

    A choice ends with the chunk that has a `finish_reason`; the last chunk of a request also has
    `usage`. `text` is whole characters, may be empty, and never holds any part of a stop string.
    """

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole reply."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """Every chunk of a request folded together, choices in order of their index."""

    choices: tuple[Choice, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is each continuation after this context?

    Text is tokenised as it is, without a chat template; context and continuation are tokenised
    together and cut where the continuation begins, so that merges over the border are the model's.
    """

    context: str | tuple[int, ...]
    continuations: tuple[str | tuple[int, ...], ...]
    adapter: str | None = None

    def __post_init__(self) -> None:
        if not self.continuations:
            raise RequestError("nothing to score: no continuation was given", param="continuations")


@dataclass(frozen=True, slots=True)
class Score:
    """Summed natural log-likelihood of one continuation."""

    logprob: float
    token_count: int
    is_greedy: bool
    """Whether greedy decoding of the context would have produced the continuation."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded and where."""

    model_id: str
    backend: str
    device: str
    dtype: str
    quant: Quant
    context_length: int
    """Tokens of prompt and reply together."""
    parameter_count: int
    weight_bytes: int
    has_chat_template: bool
    template_fingerprint: str | None
    notes: tuple[str, ...] = ()
    """What a person should know of this set-up, a sentence each."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report from long work: how far a stage is."""

    stage: str
    done: float | None = None
    total: float | None = None
    unit: Literal["", "B"] = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Report to nobody."""
