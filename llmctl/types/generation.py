"""Generation requests with their sampling parameters, and the chunks and results of replies."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

from llmctl.errors import RequestError
from llmctl.types.call_layout import CallLayout
from llmctl.types.conversation import Message, Tool, ToolCall, check_unicode


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that a reply must follow."""

    kind: Literal["json_schema", "json_object", "regex", "choice"]
    source: str = ""
    """The JSON schema as JSON text, or the regular expression."""
    choices: tuple[str, ...] = ()
    param: str = ""
    """Name of its field in the API request, for errors; empty for the usual one of its kind."""
    calls: CallLayout | None = None
    """How calls are written, if `source` is the schema of tool calls."""
    optional: bool = False
    """Whether the reply is free text in which only the calls follow the grammar."""
    open_objects: bool = False
    """Whether objects of the schema have other properties too, unless `additionalProperties` says
    otherwise."""

    def __post_init__(self) -> None:
        if self.kind == "choice" and (not self.choices or "" in self.choices):
            raise RequestError("a choice needs at least one text, none empty", param="choice")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of sampling and of the end of a reply.

    `with_defaults` fills the fields that are `None`: a request's values come first, then those of
    the server or command, of the model's `generation_config`, and of `DEFAULT_SAMPLING`.
    """

    max_new_tokens: int | None = None
    """Limit per choice; `None` is the rest of the context."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Probability mass to sample from; always includes the likeliest token."""
    top_k: int | None = None
    """0 is the whole vocabulary."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Counts prompt and reply; 1 is none (Keskar et al. 2019, CTRL)."""
    presence_penalty: float | None = None
    """Counts the reply only, as OpenAI defines it."""
    frequency_penalty: float | None = None
    """Counts the reply only, as OpenAI defines it."""
    logit_bias: tuple[tuple[int, float], ...] | None = None
    stop: tuple[str, ...] | None = None
    """Texts that end the reply and are not part of it."""
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    """Choices per request."""
    logprobs: int | None = None
    """`None` for none; k >= 0 for the chosen token and the k likeliest."""
    min_new_tokens: int | None = None
    """Number of tokens before which end tokens are forbidden."""
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            # This form also refuses NaN.
            if value is not None and not low <= value <= high:
                raise RequestError(
                    f"{name} is {value}; it must be between {low} and {high}", param=name
                )
        if self.stop is not None and "" in self.stop:
            raise RequestError("a stop string is empty", param="stop")

    def with_defaults(self, lower: "SamplingParams") -> Self:
        """Return these parameters with every `None` replaced by the value in `lower`."""
        values = {f.name: v for f in fields(self) if (v := getattr(lower, f.name)) is not None}
        missing = {name: v for name, v in values.items() if getattr(self, name) is None}
        return replace(self, **missing)


SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 2**31),
    "min_new_tokens": (0, 2**31),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 2**31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, 128),
    "logprobs": (0, 20),
}
"""Inclusive bounds, OpenAI's for its own fields. `--help` and the server use them too."""
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
"""Values for what neither the request, the command nor the model sets."""

FinishReason = Literal["stop", "length", "tool_calls"]


def new_request_id() -> str:
    """Return a unique id."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation or a raw prompt, never both, with the parameters of its replies."""

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids, used as they are, without a chat template."""
    tools: tuple[Tool, ...] = ()
    """Tools that the model may call."""
    required_tools: tuple[str, ...] = ()
    """Names of tools: the reply is a call of one of them, enforced by a grammar."""
    parallel_tool_calls: bool = True
    """Whether a reply with `required_tools` may have several calls."""
    continue_final_message: bool = False
    """Whether the reply continues the last message, which must be the assistant's."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Other variables of the chat template, such as `enable_thinking`."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None
    request_id: str = field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise RequestError("a request has either messages or a prompt", param="messages")
        if isinstance(self.prompt, str):
            check_unicode(self.prompt, param="prompt")
        unknown = set(self.required_tools) - {tool.name for tool in self.tools}
        if unknown:
            raise RequestError(
                f"the required tool {min(unknown)!r} is not among the tools",
                param="tool_choice",
            )
        if self.required_tools and self.sampling.grammar is not None:
            raise RequestError(
                "a reply cannot have both a grammar and a required tool call", param="tool_choice"
            )
        if self.continue_final_message and (
            not self.messages or self.messages[-1].role != "assistant"
        ):
            raise RequestError(
                "continue_final_message needs an assistant message at the end", param="messages"
            )


@dataclass(frozen=True, slots=True)
class TokenProb:
    """A token and its natural log-probability under the model's raw distribution."""

    token_id: int
    token: str
    """The token as text, with U+FFFD for bytes that are only part of a character."""
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token and the likeliest tokens in its place, likeliest first."""

    chosen: TokenProb
    top: tuple[TokenProb, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as OpenAI defines them: the prompt once, the choices summed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """The next part of one choice.

    The last chunk of a choice has a `finish_reason`; the last chunk of a request also has `usage`.
    `text` consists of whole characters, may be empty, and has no part of a stop string, of the
    reasoning or of tool calls.
    """

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls, or more arguments of the previous call: those have its id."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One complete reply."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All chunks of a request combined, with the choices in order of their index."""

    choices: tuple[Choice, ...]
    usage: Usage
