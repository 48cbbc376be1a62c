"""What does a reply consist of?"""

import uuid
from dataclasses import dataclass
from typing import Protocol

from llmctl.types import ToolCall


@dataclass(frozen=True, slots=True)
class ResponseDelta:
    """A piece of a reply; one of the three is there."""

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    """With the id of the call before it: more of that call's arguments."""


class ResponseParser(Protocol):
    """Tells the parts of one reply apart, while it is written."""

    def feed(self, text: str) -> list[ResponseDelta]:
        """Take the next piece of what the model writes; return what is certain by now."""

    def end(self) -> list[ResponseDelta]:
        """Return the rest, once no more can come."""


def new_tool_call_id() -> str:
    """Return an id for a call, in OpenAI's style."""
    return f"call_{uuid.uuid4().hex[:24]}"
