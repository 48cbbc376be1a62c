"""Parsing of responses with `<think>` and Hermes' `<tool_call>`, which many models share.

A mark counts only where the models put it: reasoning at the start of the response, a call at the
start of a line and outside of a fenced code block. An answer may speak of the marks.
"""

import json
from typing import Any

from llmctl.engine.chat.response_delta import ResponseDelta, new_tool_call_id
from llmctl.engine.chat.stop_strings import partial_match_length
from llmctl.engine.chat.think_tags import ThinkTagSplitter
from llmctl.engine.chat.tool_choice import RequiredToolCallParser
from llmctl.types import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FENCE = "```"


class MarkedResponseParser:
    """A `ResponseParser` for models that write these marks.

    Args:
        reasoning: whether the model writes `<think>`.
        calls: whether it may call tools.
        opened: whether the prompt ends with `<think>`.
    """

    def __init__(self, *, reasoning: bool, calls: bool, opened: bool = False) -> None:
        self._think = ThinkTagSplitter(opened=opened) if reasoning else None
        self._calls = _CallSplitter() if calls else None

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        answer, reasoning = (text, "") if self._think is None else self._think.feed(text)
        return _reasoning(reasoning) + self._answer(answer)

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        answer, reasoning = ("", "") if self._think is None else self._think.flush()
        deltas = _reasoning(reasoning.rstrip()) + self._answer(answer)
        return deltas if self._calls is None else deltas + self._calls.end()

    def _answer(self, text: str) -> list[ResponseDelta]:
        if self._calls is not None:
            return self._calls.feed(text) if text else []
        return [ResponseDelta(text)] if text else []


def _reasoning(text: str) -> list[ResponseDelta]:
    return [ResponseDelta(reasoning=text)] if text else []


class _CallSplitter:
    """Separates calls from the answer. White space around a call belongs to it."""

    def __init__(self) -> None:
        self._text = ""
        """What is not returned yet."""
        self._line = ""
        """The part of the current line that was returned or skipped."""
        self._in_fence = self._in_call = self._after_call = False

    def feed(self, text: str) -> list[ResponseDelta]:
        self._text += text
        deltas: list[ResponseDelta] = []
        while self._text:
            before = len(self._text), self._in_call
            deltas += self._read_call() if self._in_call else self._read_answer()
            if (len(self._text), self._in_call) == before:
                break
        return deltas

    def end(self) -> list[ResponseDelta]:
        if not self._in_call:
            return self._take(len(self._text))
        # Cut off by the token limit: the arguments so far, if it has come to them.
        parser = RequiredToolCallParser()
        calls = parser.feed(self._text)
        return calls or [ResponseDelta(f"{_OPEN}{self._text}")]

    def _read_answer(self) -> list[ResponseDelta]:
        at = self._text.find(_OPEN)
        while at >= 0 and not self._may_call(at):
            at = self._text.find(_OPEN, at + 1)
        if at >= 0:
            deltas = self._take(len(self._text[:at].rstrip()))
            self._text = self._text.lstrip()[len(_OPEN) :]
            self._line, self._in_call = "", True
            return deltas
        held = partial_match_length(self._text, [_OPEN])
        return self._take(len(self._text[: len(self._text) - held].rstrip()))

    def _may_call(self, at: int) -> bool:
        """Whether a mark at this place is the first of its line and not in a code block."""
        lines = (self._line + self._text[:at]).split("\n")
        fences = sum(line.lstrip().startswith(_FENCE) for line in lines[:-1])
        # A fence that opens on the line of `_line` was counted when its end was returned.
        return not lines[-1].strip() and not (self._in_fence ^ bool(fences % 2))

    def _take(self, length: int) -> list[ResponseDelta]:
        """Return the next characters as answer."""
        taken, self._text = self._text[:length], self._text[length:]
        if self._after_call:
            taken = taken.lstrip()
            self._after_call = not taken
        if not taken:
            return []
        *whole, self._line = (self._line + taken).split("\n")
        for line in whole:
            self._in_fence ^= line.lstrip().startswith(_FENCE)
        return [ResponseDelta(taken)]

    def _read_call(self) -> list[ResponseDelta]:
        at = self._text.find(_CLOSE)
        while at >= 0:
            body = self._text[:at]
            value = _parsed(body)
            following = self._text.find(_CLOSE, at + 1)
            # The mark may be part of a string in the arguments.
            if value is not None or following < 0:
                if value is None and _ends_in_string(body):
                    return []
                self._text = self._text[at + len(_CLOSE) :]
                self._in_call = False
                self._after_call = value is not None
                if value is None:
                    return [ResponseDelta(f"{_OPEN}{body}{_CLOSE}")]
                return [ResponseDelta(call=value)]
            at = following
        return []


def _parsed(body: str) -> ToolCall | None:
    """Return the call that a text holds, or `None` if it holds none."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(value["name"], arguments, new_tool_call_id())


def _ends_in_string(text: str) -> bool:
    """Whether a JSON text ends within a string."""
    inside = escaped = False
    for char in text:
        if inside and char == "\\" and not escaped:
            escaped = True
            continue
        if char == '"' and not escaped:
            inside = not inside
        escaped = False
    return inside
