"""What a chat template can render, found by rendering examples."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

from llmctl.types import Tool

PROBE = "probe_of_tools"
PROBE_ID = "probe0001"
_PROBE_TEXT = "Probe of text."
_ARGUMENT = "probe_value"
_REASONING = ("reasoning_content", "reasoning", "thinking")
_BEGUN_MARK = re.compile(r"[<\[][^<>\[\]\s]{0,24}$")

Turn = dict[str, Any]
Render = Callable[[list[Turn], list[Any] | None, bool], str | None]
"""Renders turns with tools, with or without a generation prompt; `None` if that is impossible."""


class TemplateProbe:
    """Properties of one template. Each is computed when it is first needed.

    Args:
        render: of the template.
        source: of the template for conversations with tools.
    """

    def __init__(self, render: Render, source: str) -> None:
        self._render = render
        self._source = source

    @cached_property
    def tools_in(self) -> Literal["variable", "message"] | None:
        """Where the template reads tools: its variable, or a key of the system message (Phi-4)."""
        probe = [tool_definition(Tool(PROBE))]
        turns: list[Turn] = [
            {"role": "system", "content": "Instruct"},
            {"role": "user", "content": "Ask"},
        ]
        for start in (1, 0):  # some templates have no system role
            if PROBE in (self._render(turns[start:], probe, True) or ""):
                return "variable"
        with_tools = [turns[0] | {"tools": json.dumps(probe)}, turns[1]]
        return "message" if PROBE in (self._render(with_tools, None, True) or "") else None

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template renders a system message."""

        def renders(*turns: tuple[str, str]) -> bool:
            messages = [{"role": role, "content": content} for role, content in turns]
            text = self._render(messages, None, False)
            return text is not None and all(content in text for _, content in turns)

        # A template that cannot render a single user message proves nothing.
        return renders(("system", "Instruct"), ("user", "Ask")) or not renders(("user", "Ask"))

    @cached_property
    def renders_calls(self) -> bool:
        """Whether the template renders the tool calls of earlier messages."""
        turns = self._called(PROBE_ID, self._call_turn({"a": 1}))
        text = self._render(turns, self._tools, True)
        if text is None:  # it may want an answer after the result
            answer: Turn = {"role": "assistant", "content": "Answer"}
            text = self._render([*turns, answer], self._tools, True)
        if text is None and self.arguments_as_text:
            turns = self._called(PROBE_ID, self._call_turn('{"a": 1}'))
            text = self._render(turns, self._tools, True)
        if text is None:
            return "tool_calls" in self._source
        without = self._render(turns[:1], self._tools, True) or ""
        return text.count(PROBE) > without.count(PROBE)

    @cached_property
    def arguments_as_text(self) -> bool:
        """Whether the template takes the arguments of a call as JSON text only (DeepSeek V3)."""

        def rendered(arguments: object) -> str | None:
            turns = self._called(PROBE_ID, self._call_turn(arguments))
            return self._render(turns, self._tools, False)

        arguments = {_ARGUMENT: "x"}
        if rendered(arguments) is not None:
            return False
        text = json.dumps(arguments)
        return text in (rendered(text) or "")

    @cached_property
    def requires_short_call_ids(self) -> bool:
        """Whether ids of calls must have nine letters or digits (Mistral)."""

        def renders(call_id: str) -> bool:
            turns = self._called(call_id, self._call_turn({}, call_id))
            return self._render(turns, None, True) is not None

        return self.renders_calls and not renders("call_1") and renders(PROBE_ID)

    @cached_property
    def call_text(self) -> str:
        """What the template prints for a turn with a call, after its header; empty if nothing."""
        arguments: object = {_ARGUMENT: "x"}
        if self.arguments_as_text:
            arguments = json.dumps(arguments)
        return self._printed(self._call_turn(arguments), PROBE)

    def calls_text(self, arguments: Mapping[str, object], count: int) -> str:
        """Return what the template prints for a turn with calls, after its header, or nothing.

        Args:
            arguments: of each call.
            count: how many calls of the tool PROBE.
        """
        value = json.dumps(arguments) if self.arguments_as_text else arguments
        calls = [
            self._call_turn(value, f"{PROBE_ID[:-1]}{number}")["tool_calls"][0]
            for number in range(1, count + 1)
        ]
        return self._printed({"role": "assistant", "content": "", "tool_calls": calls}, PROBE)

    @cached_property
    def reasoning_text(self) -> str:
        """What the template prints for a turn with reasoning, and the end of its prompt."""
        turn: Turn = {"role": "assistant", "content": "Answer"}
        turn |= self.reasoning_fields("Answer", _PROBE_TEXT)
        prompt = self._render([{"role": "user", "content": "Ask"}], None, True) or ""
        return f"{prompt[-80:]}\n{self._printed(turn, _PROBE_TEXT)}"

    @cached_property
    def answer_indent(self) -> str:
        """White space that the template prints before every answer, and the model so writes."""
        printed = self._printed({"role": "assistant", "content": _PROBE_TEXT}, _PROBE_TEXT)
        indent = printed.partition(_PROBE_TEXT)[0]
        return "" if indent.strip() else indent

    def reasoning_fields(self, content: str, reasoning: str) -> Turn:
        """Return the fields of a turn in which the template reads reasoning."""
        if self._reasoning_in == "blocks":
            blocks: list[Turn] = [{"type": "thinking", "thinking": reasoning}]
            return {"content": blocks + [{"type": "text", "text": content}] * bool(content)}
        return {self._reasoning_in: reasoning}

    @cached_property
    def _reasoning_in(self) -> str:
        """The field in which the template reads reasoning, or `blocks` of the content (Mistral)."""
        turn: Turn = {"role": "assistant", "content": "Answer"}
        for field in _REASONING:
            if self._printed(turn | {field: _PROBE_TEXT}, _PROBE_TEXT):
                return field
        blocks = [{"type": "thinking", "thinking": _PROBE_TEXT}, {"type": "text", "text": "Answer"}]
        printed = self._printed({"role": "assistant", "content": blocks}, _PROBE_TEXT)
        # A template that prints the list as JSON or as Python does, does not read it.
        listed = re.search("""["']thinking["']""", printed)
        return "blocks" if printed and not listed else _REASONING[0]

    @property
    def _tools(self) -> list[Any]:
        return [tool_definition(Tool(PROBE))]

    @staticmethod
    def _call_turn(arguments: object, call_id: str = PROBE_ID) -> Turn:
        function = {"name": PROBE, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    @staticmethod
    def _called(call_id: str, turn: Turn) -> list[Turn]:
        turn["tool_calls"][0]["id"] = call_id
        result = {"role": "tool", "content": "Result", "tool_call_id": call_id, "name": PROBE}
        return [{"role": "user", "content": "Ask"}, turn, result]

    def _printed(self, turn: Turn, text: str) -> str:
        """Return what the template prints for a turn after its header, if it holds a text."""
        tools = self._tools if "tool_calls" in turn else None
        asked: Turn = {"role": "user", "content": "Ask"}
        for start in ([asked], [{"role": "system", "content": "Instruct"}, asked]):
            prompt = self._render(start, tools, True)
            whole = self._render([*start, turn], tools, False)
            if prompt is not None and whole is not None:
                common = common_length(prompt, whole)
                # The prompt and the turn may begin different marks alike.
                begun = _BEGUN_MARK.search(prompt[:common])
                printed = (begun[0] if begun else "") + whole[common:]
                return printed if text in printed else ""
        return ""


def common_length(first: str, second: str) -> int:
    """Return the length of the longest beginning that two texts share."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def tool_definition(tool: Tool) -> dict[str, object]:
    """Return a tool in OpenAI's JSON form, which chat templates take too."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
