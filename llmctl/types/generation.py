"""Generation requests, and the chunks and results of their replies."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmctl.errors import RequestError
from llmctl.types.conversation import Message, Tool, ToolCall, check_unicode
from llmctl.types.sampling import SamplingParams

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
