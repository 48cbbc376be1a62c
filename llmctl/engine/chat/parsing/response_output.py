"""What readers write: answer, reasoning and calls, as deltas."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmctl.engine.chat.parsing.parameter_types import ToolParameters
from llmctl.engine.chat.response_delta import ResponseDelta, new_tool_call_id
from llmctl.types import Tool, ToolCall


class ResponseOutput:
    """Deltas of one response.

    Args:
        tools: that the request offers.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools: Mapping[str, ToolParameters] = {
            tool.name: ToolParameters(tool.parameters or {}) for tool in tools
        }
        self.call_open = False
        """Whether the current call has been written, so that it cannot be taken back."""
        self.call_count = 0
        """Calls that were begun."""
        self._deltas: list[ResponseDelta] = []
        self._ids: set[str] = set()
        self._name = self._id = ""
        self._empty = True

    def take(self) -> list[ResponseDelta]:
        """Return the deltas since the last time; those of one part are joined."""
        joined: list[ResponseDelta] = []
        for delta in self._deltas:
            both = _joined(joined[-1], delta) if joined else None
            if both is None:
                joined.append(delta)
            else:
                joined[-1] = both
        self._deltas.clear()
        return joined

    def text(self, text: str) -> None:
        """Write answer."""
        if text:
            self._deltas.append(ResponseDelta(text))

    def reasoning(self, text: str) -> None:
        """Write reasoning."""
        if text:
            self._deltas.append(ResponseDelta(reasoning=text))

    def begin_call(self, name: str, call_id: str = "") -> None:
        """Begin a call. An id that the model wrote is kept unless an earlier call has it."""
        self._name = name
        self._id = call_id if call_id and call_id not in self._ids else new_tool_call_id()
        self._ids.add(self._id)
        self.call_open = self._empty = True
        self.call_count += 1
        self._deltas.append(ResponseDelta(call=ToolCall(name, "", self._id)))

    def arguments(self, text: str) -> None:
        """Write a part of the current call's arguments, which are JSON."""
        if text:
            self._empty = False
            self._deltas.append(ResponseDelta(call=ToolCall(self._name, text, self._id)))

    def end_call(self) -> None:
        """End the call; without arguments it gets an empty object."""
        if self._empty:
            self.arguments("{}")
        self.call_open = False

    def abandon_call(self) -> None:
        """End a call that is cut off; its arguments stay incomplete."""
        self.call_open = False


class ArgumentWriter:
    """Writes the arguments of one call one by one."""

    def __init__(self, output: ResponseOutput) -> None:
        self._output = output
        self._count = 0

    def key(self, name: str) -> None:
        """Write the name of the next argument."""
        opening = ", " if self._count else "{"
        self._count += 1
        self._output.arguments(f"{opening}{dumps(name)}: ")

    def value(self, value: object) -> None:
        """Write its value."""
        self._output.arguments(dumps(value))

    def string_piece(self, text: str) -> None:
        """Write part of a string whose quotes are written separately."""
        self._output.arguments(dumps(text)[1:-1])

    def quote(self) -> None:
        """Write the opening or closing quote of a string."""
        self._output.arguments('"')

    def close(self) -> None:
        """End the arguments and the call."""
        if self._count:
            self._output.arguments("}")
        self._output.end_call()


def _joined(first: ResponseDelta, second: ResponseDelta) -> ResponseDelta | None:
    """Return two deltas as one, `None` if they belong to different parts."""
    if first.call is None and second.call is None:
        if bool(first.reasoning) != bool(second.reasoning):
            return None
        return ResponseDelta(first.text + second.text, first.reasoning + second.reasoning)
    if first.call is None or second.call is None or first.call.id != second.call.id:
        return None
    arguments = first.call.arguments + second.call.arguments
    return ResponseDelta(call=replace(first.call, arguments=arguments))


def dumps(value: object) -> str:
    """Return JSON."""
    return json.dumps(value, ensure_ascii=False)
