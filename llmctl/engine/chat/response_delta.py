"""What a response parser produces: pieces of answer text, reasoning and tool calls."""

import uuid
from dataclasses import dataclass
from typing import Protocol

from llmctl.types import ToolCall


@dataclass(frozen=True, slots=True)
class ResponseDelta:
    """A piece of a response; exactly one of the three is set."""

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    """A call with the id of the call before it holds more of that call's arguments."""


@dataclass(frozen=True, slots=True)
class ReasoningTokens:
    """The marks around the reasoning that may precede a response restricted by a grammar."""

    open_id: int
    close_ids: tuple[int, ...]
    """The tokens after which the grammar begins."""
    opened: bool
    """Whether the response begins within the reasoning."""
    forced_ids: tuple[int, ...] = ()
    """Tokens that end reasoning of the greatest length; empty for `close_ids`."""


class ResponseParser(Protocol):
    """Separates answer, reasoning and tool calls of one response while it is generated."""

    def feed(self, text: str) -> list[ResponseDelta]:
        """Take the next piece of generated text; return what is certain so far."""

    def end(self) -> list[ResponseDelta]:
        """Return the rest, once the generation has ended."""


def new_tool_call_id() -> str:
    """Return an id for a tool call, in OpenAI's style."""
    return f"call_{uuid.uuid4().hex[:24]}"
