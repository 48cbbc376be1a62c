"""What people, models and tools say to each other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from llmctl.errors import RequestError

Role = Literal["system", "user", "assistant", "developer", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What an assistant asks a tool to do."""

    name: str
    arguments: str
    """A JSON object as text, as the model wrote it."""
    id: str = ""

    def parsed(self) -> dict[str, object]:
        """Return the arguments as a mapping, the form chat templates expect.

        Raises:
            RequestError: they are no JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"the arguments of the call to {self.name!r} are no JSON: {error}",
                param="messages",
            ) from error
        if not isinstance(value, dict):
            raise RequestError(
                f"the arguments of the call to {self.name!r} are no JSON object", param="messages"
            )
        return value


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] | None = None
    """JSON schema of the arguments, an object's; `None` takes no arguments."""
    strict: bool = False
    """The arguments must follow the schema to the letter."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    """Empty where the turn is nothing but tool calls."""
    reasoning: str | None = None
    """What an assistant thought before it answered."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """The call that a tool's message answers."""
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise RequestError(
                f"unknown role {self.role!r}", hint=f"one of: {', '.join(get_args(Role))}"
            )
        if self.tool_calls and self.role != "assistant":
            raise RequestError(f"a {self.role} calls no tools", param="messages")
        check_unicode(self.content, param="messages")
        if self.reasoning is not None:
            check_unicode(self.reasoning, param="messages")


def check_unicode(text: str, *, param: str) -> None:
    """Refuse what no tokenizer can read: JSON admits half a surrogate pair, UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has half a surrogate pair at character {error.start}, which is no Unicode",
            param=param,
        ) from error
