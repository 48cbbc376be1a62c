"""Tool choice: required tool calls by grammar, and tools as text for templates without them."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmctl.engine.chat.parsing.json_text import ValueScanner
from llmctl.engine.chat.response_delta import ResponseDelta, ResponseParser, new_tool_call_id
from llmctl.errors import RequestError
from llmctl.types import Message, Tool, ToolCall


class RequiredToolCallParser:
    """Parses a response that a grammar restricts to the JSON of `tool_call_schema`."""

    _HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')

    def __init__(self) -> None:
        self._text = ""
        self._value: ValueScanner | None = None
        """The arguments of the current call."""
        self._name = self._id = ""

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`. The arguments of a call are returned in pieces."""
        self._text += text
        deltas = []
        while self._text:
            if self._value is None:
                head = self._HEAD.search(self._text)
                if head is None:
                    break
                self._name, self._id = json.loads(head.group(1)), new_tool_call_id()
                self._value = ValueScanner()
                self._text = self._text[head.end() :]
            length = self._value.scan(self._text)
            if length:
                deltas.append(
                    ResponseDelta(call=ToolCall(self._name, self._text[:length], self._id))
                )
                self._text = self._text[length:]
            if self._value.ended:
                self._value = None
        return deltas

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`. A call cut off by the token limit stays incomplete."""
        return []


class RestrictedResponseParser:
    """Parses a response that a grammar restricts after the reasoning.

    Args:
        reasoning: separates the reasoning.
        calls: whether the grammar is that of required tool calls.
    """

    def __init__(self, reasoning: ResponseParser, *, calls: bool) -> None:
        self._reasoning = reasoning
        self._calls = RequiredToolCallParser() if calls else None

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        return self._converted(self._reasoning.feed(text))

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        return self._converted(self._reasoning.end())

    def _converted(self, deltas: list[ResponseDelta]) -> list[ResponseDelta]:
        if self._calls is None:
            return deltas
        return [
            converted
            for delta in deltas
            for converted in (self._calls.feed(delta.text) if delta.text else [delta])
        ]


MAX_TOOL_CALLS = 8
"""In one response: a small model would not stop by itself."""


def tool_call_schema(tools: Sequence[Tool], *, parallel: bool) -> dict[str, object]:
    """Return the JSON schema of a response that consists of calls of these tools.

    Raises:
        RequestError: the schema of a tool's arguments cannot be embedded.
    """
    definitions: dict[str, object] = {}
    calls = []
    for number, tool in enumerate(tools):
        definitions[f"tool{number}"] = _without_additional(_rebased(tool, f"#/$defs/tool{number}"))
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


def _without_additional(arguments: dict[str, Any]) -> dict[str, Any]:
    """Forbid arguments that the schema does not name, unless the schema says otherwise."""
    if arguments.keys() & {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"}:
        return arguments
    return {"type": "object", "properties": {}, "additionalProperties": False} | arguments


_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
"""Keywords whose keys are names of schemas, not keywords."""
_LITERAL = ("const", "enum", "default", "examples")
"""Keywords whose values are data, not schemas."""


def _rebased(tool: Tool, root: str) -> dict[str, Any]:
    """Return the schema of a tool's arguments for use at `root` inside another schema.

    References to its own root are rewritten to `root` (RFC 6901). `$id` is removed, since it would
    make the schema a root again.
    """
    schema = {key: value for key, value in (tool.parameters or {}).items() if key != "$id"}

    def rebase(value: Any, *, named: bool = False) -> Any:
        if isinstance(value, list):
            return [rebase(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {k: rebase(v) if named else keyword(k, v) for k, v in value.items()}

    def keyword(key: str, value: Any) -> Any:
        if key in _LITERAL:
            return value
        if key == "$ref" and isinstance(value, str):
            return re.sub(r"^#(?=/|$)", root, value)
        return rebase(value, named=key in _NAMED)

    where = f"the parameters of the function {tool.name!r}"
    for key in ("$defs", "definitions"):
        if not isinstance(schema.get(key, {}), dict):
            raise RequestError(f"{where} have {key!r} that is not an object", param="tools")
    try:
        result: dict[str, Any] = rebase(schema)
    except RecursionError as error:
        raise RequestError(f"{where} are nested too deeply", param="tools") from error
    return result


def tools_as_text(tools: Sequence[Tool], example: str) -> str:
    """Describe tools for a model whose chat template does not render them.

    Args:
        tools: of the request.
        example: a call of a function `add` with the arguments a=1 and b="x".
    """
    lines = ["You can call these functions:"]
    for tool in tools:
        schema = json.dumps(tool.parameters or {}, ensure_ascii=False)
        lines.append(f"- {tool.name}: {tool.description} Arguments: {schema}")
    lines += [
        "",
        "To call functions, write only the calls. A call of a function `add` would be:",
        example,
        "The results come in the next message. Answer in words if no function is needed.",
    ]
    return "\n".join(lines)


def tool_messages_as_text(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return tool calls and tool results as plain messages.

    Calls are written in the format `json` of `formats.families`, results as user messages.
    """
    plain: list[Message] = []
    names: dict[str | None, str] = {}
    previous = ""
    for message in messages:
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            calls = [{"name": c.name, "arguments": c.parsed_or_text()} for c in message.tool_calls]
            texts = [json.dumps(call, ensure_ascii=False) for call in calls]
            text = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in texts)
            content = f"{message.content}\n{text}" if message.content else text
            plain.append(replace(message, content=content, tool_calls=()))
        elif message.role == "tool":
            name = message.name or names.get(message.tool_call_id, "the function")
            text = f"Result of {name}: {message.content}"
            if previous == "tool":
                # Most templates require alternating roles.
                plain[-1] = replace(plain[-1], content=f"{plain[-1].content}\n{text}")
            else:
                plain.append(Message("user", text))
        else:
            plain.append(message)
        previous = message.role
    return tuple(plain)
