"""A request to generate, and the pieces in which its replies come."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmctl.errors import RequestError
from llmctl.types.conversation import Message, Tool, ToolCall, check_unicode
from llmctl.types.sampling import SamplingParams

FinishReason = Literal["stop", "length", "tool_calls"]


def new_request_id() -> str:
    """Return an id no other request of any process has."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to answer: a conversation or a raw prompt, never both."""

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    """Text or token ids that go to the model as they are, without a chat template."""
    tools: tuple[Tool, ...] = ()
    """What the model may call."""
    required_tools: tuple[str, ...] = ()
    """Names of tools: the reply is nothing but a call of one of these, whatever the model likes."""
    parallel_tool_calls: bool = True
    """A forced reply may call several."""
    continue_final_message: bool = False
    """The reply goes on where the last message, an assistant's, ends."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the chat template, such as `enable_thinking`."""
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
                f"the tool {min(unknown)!r} is to be called, and is not among the tools",
                param="tool_choice",
            )
        if self.required_tools and self.sampling.grammar is not None:
            raise RequestError(
                "a reply cannot follow a grammar and be a call of a tool", param="tool_choice"
            )
        if self.continue_final_message and (
            not self.messages or self.messages[-1].role != "assistant"
        ):
            raise RequestError(
                "continue_final_message needs an assistant's message at the end", param="messages"
            )


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
    Reasoning and calls of tools are not part of it.
    """

    text: str
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """One with the id of the choice's call before it has more of that call's arguments."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole reply."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """Every chunk of a request folded together, choices in order of their index."""

    choices: tuple[Choice, ...]
    usage: Usage
