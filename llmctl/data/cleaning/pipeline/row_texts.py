"""Changing the texts of a raw row in place, so that it keeps its format and all its columns."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llmctl.data.formats.columns import FORMATS
from llmctl.data.formats.tool_calls import decode_json_cell
from llmctl.types import Example

_ANSWERS = frozenset(("output", "completion", "chosen", "rejected", "text"))
_ASSISTANT = frozenset(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"))
_TOOL = frozenset(("tool", "observation", "function", "tool_response", "function_response"))
_CALLS = frozenset(("function_call", "tool_call", "tool_calls"))
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class TextTransform(Protocol):
    """The changes to the texts of a row."""

    def text(self, text: str, *, is_answer: bool) -> str:
        """Change the text of a person or a model."""

    def data(self, text: str) -> str:
        """Change the result or the arguments of a tool, usually JSON as text.

        Strings in columns that are not part of the format are data too.
        """


def map_texts(
    value: Mapping[str, object],
    example: Example,
    columns: Mapping[str, str],
    change: TextTransform,
) -> Mapping[str, object]:
    """Return a row with its texts changed; the same object if no text changed.

    Args:
        example: the parsed row.
        columns: standard column names -> names in the file, where they differ.
        change: the changes.
    """
    new = dict(value)
    other_columns = dict.fromkeys(value)
    for column in FORMATS[example.format].columns():
        names = (columns.get(name, name) for name in column.names())
        name = next((name for name in names if value.get(name) is not None), None)
        if name is None:
            continue
        other_columns.pop(name, None)
        if column.name != "tools":
            new[name] = _column(value[name], column.name, change)
    for name in other_columns:
        new[name] = _strings(value[name], change.data)
    return value if new == value else new


def _strings(value: Any, change: Callable[[str], str]) -> Any:
    """Change the strings of a column outside the format. Numbers stay: most are ids and scores."""
    match value:
        case str():
            inner = decode_json_cell(value)
            if isinstance(inner, str):
                return change(inner)
            new = _strings(inner, change)
            return value if new == inner else json.dumps(new, ensure_ascii=False)
        case list():
            return [_strings(item, change) for item in value]
        case dict():
            return {key: _strings(item, change) for key, item in value.items()}
    return value


def _column(value: object, name: str, change: TextTransform) -> object:
    """Change a text, turns, or turns as JSON in a table cell."""
    inner = decode_json_cell(value)
    if isinstance(value, str) and not (name in ("messages", "history") or _are_turns(inner)):
        return change.text(value, is_answer=name in _ANSWERS)
    new = _turns(inner, change)
    if not isinstance(value, str):
        return new
    return value if new == inner else json.dumps(new, ensure_ascii=False)


def _are_turns(value: object) -> bool:
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns
    )


def _turns(value: Any, change: TextTransform) -> Any:
    match value:
        case dict():
            return _turn(value, change)
        case [str(question), str(answer)]:  # a pair of alpaca's history
            return [change.text(question, is_answer=False), change.text(answer, is_answer=True)]
        case list():
            return [_turns(item, change) for item in value]
        case _:
            return value


def _turn(turn: dict[str, Any], change: TextTransform) -> dict[str, Any]:
    role = turn.get("role", turn.get("from"))
    new = dict(turn)
    for key in ("content", "value"):
        if role in _CALLS or role in _TOOL:
            new |= {key: map_data(turn[key], change.data)} if key in turn else {}
        elif key in turn:
            new[key] = _content(turn[key], change, is_answer=role in _ASSISTANT)
    for key in _THOUGHTS:
        if isinstance(turn.get(key), str):
            new[key] = change.text(turn[key], is_answer=False)
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            new[key] = map_data(turn[key], change.data)
    return new


def _content(value: Any, change: TextTransform, *, is_answer: bool) -> Any:
    match value:
        case str():
            return change.text(value, is_answer=is_answer)
        case list():
            # The ends of a content part are not the ends of the text.
            return [
                _content(part, change, is_answer=is_answer and len(value) == 1) for part in value
            ]
        case {"text": str(text)}:
            return {**value, "text": change.text(text, is_answer=is_answer)}
        case {"value": str(text)}:
            return {**value, "value": change.text(text, is_answer=is_answer)}
        case _:
            return value


def map_data(value: Any, change: Callable[[str], str]) -> Any:
    """Change every string in data, also in JSON inside a string.

    A number with changed digits becomes a string, so that JSON stays valid.
    """
    match value:
        case bool() | None:
            return value
        case str():
            return _map_json_text(value, change)
        case int() | float():
            text = repr(value)
            return value if (new := change(text)) == text else new
        case list():
            return [map_data(item, change) for item in value]
        case dict():
            return {key: map_data(item, change) for key, item in value.items()}
        case _:
            return value


def _map_json_text(text: str, change: Callable[[str], str]) -> str:
    inner = decode_json_cell(text)
    if isinstance(inner, str):
        return change(text)
    new = map_data(inner, change)
    return text if new == inner else json.dumps(new, ensure_ascii=False)
