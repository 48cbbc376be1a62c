"""How does a model that must call a tool do so, whatever it was taught?

A grammar leaves it nothing to write but calls; they are read while they are written.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmctl.engine.chat.response_delta import ResponseDelta, new_tool_call_id
from llmctl.errors import RequestError
from llmctl.types import Message, Tool, ToolCall


class RequiredToolCallParser:
    """Reads a reply that a grammar has confined to calls, `tool_call_schema`'s JSON."""

    _HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')

    def __init__(self) -> None:
        self._text = ""
        self._value: _Value | None = None
        """The arguments that are being written."""
        self._name = self._id = ""

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`. The arguments of a call come in pieces."""
        self._text += text
        parts = []
        while self._text:
            if self._value is None:
                head = self._HEAD.search(self._text)
                if head is None:
                    break
                self._name, self._id = json.loads(head.group(1)), new_tool_call_id()
                self._value = _Value()
                self._text = self._text[head.end() :]
            length = self._value.reach(self._text)
            if length:
                parts.append(
                    ResponseDelta(call=ToolCall(self._name, self._text[:length], self._id))
                )
                self._text = self._text[length:]
            if self._value.ended:
                self._value = None
        return parts

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`. A call that the limit of tokens cut off stays as it is."""
        return []


class _Value:
    """Finds where a JSON value ends, while it is written (RFC 8259)."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = self._escaped = False

    def reach(self, text: str) -> int:
        """Return how much of the next piece of text belongs to the value."""
        for at, char in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
                closes = not self._in_string
            elif not self._depth and (char in ",}]" or char.isspace()):
                self.ended = True  # after a number or a word, which have no end of their own
                return at
            else:
                self._in_string = char == '"'
                closes = char in "}]"
                self._depth += (char in "{[") - closes
            if closes and not self._depth:
                self.ended = True
                return at + 1
        return len(text)


MAX_TOOL_CALLS = 8
"""In one forced reply: a small model would not come to an end by itself."""


def tool_call_schema(tools: Sequence[Tool], *, parallel: bool) -> dict[str, object]:
    """Return the JSON schema of a reply that is nothing but calls of these tools.

    Raises:
        RequestError: the schema of a tool's arguments cannot be taken over.
    """
    definitions: dict[str, object] = {}
    calls = []
    for number, tool in enumerate(tools):
        definitions[f"tool{number}"] = _closed(_moved(tool, f"#/$defs/tool{number}"))
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": {"$ref": f"#/$defs/tool{number}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    call: dict[str, object] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if parallel:
        call = {"type": "array", "items": call, "minItems": 1, "maxItems": MAX_TOOL_CALLS}
    return call | {"$defs": definitions}


def _closed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave no room for arguments the tool does not know, unless its schema speaks of them."""
    if arguments.keys() & {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"}:
        return arguments
    return {"type": "object", "properties": {}, "additionalProperties": False} | arguments


_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
"""Keywords whose keys are names of schemas, and no keywords themselves."""
_LITERAL = ("const", "enum", "default", "examples")
"""Keywords whose values are no schemas, whatever they look like."""


def _moved(tool: Tool, root: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments as it is in another one, at `root`.

    Its references begin at its own root, so they are given the way there (RFC 6901). An `$id` would
    give it a root of its own again.
    """
    schema = {key: value for key, value in (tool.parameters or {}).items() if key != "$id"}

    def moved(value: Any, *, named: bool = False) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {k: moved(v) if named else of_keyword(k, v) for k, v in value.items()}

    def of_keyword(key: str, value: Any) -> Any:
        if key in _LITERAL:
            return value
        if key == "$ref" and isinstance(value, str):
            return re.sub(r"^#(?=/|$)", root, value)
        return moved(value, named=key in _NAMED)

    wrong = f"the parameters of the function {tool.name!r}"
    for key in ("$defs", "definitions"):
        if not isinstance(schema.get(key, {}), dict):
            raise RequestError(f"{wrong} have {key!r} that are no object", param="tools")
    try:
        result: dict[str, Any] = moved(schema)
    except RecursionError as error:
        raise RequestError(f"{wrong} are nested too deeply", param="tools") from error
    return result


def tools_as_text(tools: Sequence[Tool]) -> str:
    """Describe tools to a model whose chat template has no place for them."""
    lines = [
        "You can call these functions; answer with the name of one and its arguments, as JSON."
    ]
    for tool in tools:
        schema = json.dumps(tool.parameters or {}, ensure_ascii=False)
        lines.append(f"- {tool.name}: {tool.description} Arguments: {schema}")
    return "\n".join(lines)


def tool_messages_as_text(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Tell of earlier calls as the model had to write them, and of their results as a user would.

    Raises:
        RequestError: the arguments of a call are no JSON object.
    """
    told: list[Message] = []
    names: dict[str | None, str] = {}
    previous = ""
    for message in messages:
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            calls = [{"name": c.name, "arguments": c.parsed()} for c in message.tool_calls]
            words = json.dumps(calls, ensure_ascii=False)
            content = f"{message.content}\n\n{words}" if message.content else words
            told.append(replace(message, content=content, tool_calls=()))
        elif message.role == "tool":
            name = message.name or names.get(message.tool_call_id, "the function")
            words = f"Result of {name}: {message.content}"
            if previous == "tool":
                # Most templates want turns to alternate.
                told[-1] = replace(told[-1], content=f"{told[-1].content}\n{words}")
            else:
                told.append(Message("user", words))
        else:
            told.append(message)
        previous = message.role
    return tuple(told)
