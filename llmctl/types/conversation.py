"""Messages, tools and tool calls of a conversation."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from llmctl.errors import RequestError

_log = logging.getLogger(__name__)

Role = Literal["system", "user", "assistant", "developer", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant."""

    name: str
    arguments: str
    """A JSON object as text, as the model wrote it."""
    id: str = ""

    def parsed(self) -> dict[str, object]:
        """Return the arguments as a mapping, as chat templates expect them.

        Raises:
            RequestError: they are not a JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"the arguments of the call to {self.name!r} are not JSON: {error}",
                param="messages",
            ) from error
        if not isinstance(value, dict):
            raise RequestError(
                f"the arguments of the call to {self.name!r} are not a JSON object",
                param="messages",
            )
        return value

    def parsed_or_text(self) -> dict[str, object] | str:
        """Return `parsed`, or the text if it is not a JSON object, which is logged.

        Raises:
            RequestError: they are nested too deeply.
        """
        try:
            return self.parsed()
        except RequestError as error:
            if isinstance(error.__cause__, RecursionError):
                raise
            _log.warning("%.400s; the prompt has them as text", error)
            return self.arguments


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] | None = None
    """JSON schema of the arguments, of type object; `None` for a function without arguments."""
    strict: bool = False
    """Whether the arguments must match the schema exactly."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    """Empty if the turn consists of tool calls only."""
    reasoning: str | None = None
    """The assistant's reasoning before its answer."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """The call whose result a tool message holds."""
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise RequestError(
                f"unknown role {self.role!r}", hint=f"one of: {', '.join(get_args(Role))}"
            )
        if self.tool_calls and self.role != "assistant":
            raise RequestError(
                f"a message of the role {self.role} cannot have tool calls", param="messages"
            )
        check_unicode(self.content, param="messages")
        if self.reasoning is not None:
            check_unicode(self.reasoning, param="messages")


def check_unicode(text: str, *, param: str) -> None:
    """Check that a text is valid Unicode: JSON allows lone surrogates, UTF-8 does not.

    Raises:
        RequestError: the text has a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has a lone surrogate at character {error.start}, which is not valid Unicode",
            param=param,
        ) from error
