"""Parsing of a conversation's turns in OpenAI's or ShareGPT's form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmctl.data.formats.tool_calls import (
    decode_json_cell,
    drop_nulls,
    parse_call_list,
    parse_calls,
)
from llmctl.data.rows.json_text import FieldPath, json_type_name
from llmctl.data.rows.row_errors import RowErrorCollector, join_names
from llmctl.did_you_mean import did_you_mean
from llmctl.types import Message, Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_CALLS = ("function_call", "tool_call", "tool_calls")
_WEIGHTS = ("weight", "loss_weight", "loss", "train")
"""Keys of OpenAI, LLaMA-Factory, ms-swift and Axolotl that put a turn in or out of the loss."""


@dataclass(slots=True)
class TurnList:
    """Parsed turns, each with its path in the row."""

    messages: list[Message] = field(default_factory=list)
    paths: list[FieldPath] = field(default_factory=list)
    masked: list[int] = field(default_factory=list)
    """Indexes of turns that are excluded from the loss."""

    def add(self, message: Message, path: FieldPath, *, masked: bool = False) -> None:
        if masked:
            self.masked.append(len(self.messages))
        self.messages.append(message)
        self.paths.append(path)

    def before(self, index: int) -> "TurnList":
        """Return the turns before an index."""
        masked = [i for i in self.masked if i < index]
        return TurnList(self.messages[:index], self.paths[:index], masked)

    def extend(self, other: "TurnList") -> None:
        self.masked += [len(self.messages) + index for index in other.masked]
        self.messages += other.messages
        self.paths += other.paths


def is_sharegpt(value: object) -> bool:
    """Whether a list of turns has ShareGPT's `from` in place of `role`."""
    value = decode_json_cell(value)
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "from" in first


def parse_turns(value: object, path: FieldPath, collector: RowErrorCollector) -> TurnList:
    """Parse a list of turns, or a single turn, without checking their order."""
    turns = TurnList()
    value = decode_json_cell(value)
    if isinstance(value, dict):
        _read_turn(value, path, turns, collector)
        return turns
    if not isinstance(value, list):
        collector.add("wrong-type", path, json_type_name(value), "a list of turns")
        return turns
    if not value:
        collector.add("empty", path, "no turns", "at least a user's and an assistant's")
    padded = _is_padded(value)
    for index, item in enumerate(value):
        if isinstance(item, dict):
            _read_turn(drop_nulls(item) if padded else item, (*path, index), turns, collector)
        else:
            fix = 'an object: {"role": "user", "content": "text"}'
            collector.add("wrong-type", (*path, index), json_type_name(item), fix)
    _number_calls(turns)
    return turns


def parse_text(value: object, path: FieldPath, collector: RowErrorCollector) -> str | None:
    """Return a string that is not blank; otherwise `None` with an error."""
    if not isinstance(value, str):
        collector.add("wrong-type", path, json_type_name(value), "a string")
        return None
    if not value.strip():
        collector.add("empty", path, "empty" if not value else "only white space", "text")
        return None
    return value


def _is_padded(items: Sequence[object]) -> bool:
    """Whether `datasets` wrote the turns: all have the same keys, null where one has no value.

    In such a row, a null in the arguments of a call is a name that only other calls have.
    """
    keys = {frozenset(item) for item in items if isinstance(item, dict)}
    return len(keys) == 1 and any(
        value is None for item in items if isinstance(item, dict) for value in item.values()
    )


def _read_turn(
    item: dict[str, Any], path: FieldPath, turns: TurnList, collector: RowErrorCollector
) -> None:
    role_key = next((key for key in ("role", "from") if key in item), None)
    if role_key is None:
        _report_missing_key(item, "role", ("role", "from"), path, collector)
        return
    role = item[role_key]
    if not isinstance(role, str):
        collector.add("wrong-type", (*path, role_key), json_type_name(role), "a role")
        return
    if role in _CALLS:
        _read_call_turn(item, path, turns, collector)
        return
    if role not in _ROLES:
        speakers = ("human", "gpt") if role_key == "from" else ("user", "assistant")
        near = did_you_mean(role, [*_ROLES, *_CALLS], cutoff=0.8)
        fix = f"did you mean {near!r}?" if near else f"one of {', '.join(speakers)}, system, tool"
        collector.add("unknown-role", (*path, role_key), f"unknown role {role!r}", fix)
        return
    before = len(collector.errors)
    known_role = _ROLES[role]
    calls = parse_calls(item, path, collector)
    content = _read_content(item, known_role, bool(calls), path, collector)
    reasoning = _optional_text(
        item, ("reasoning_content", "reasoning", "thinking"), path, collector
    )
    call_id = _optional_text(item, ("tool_call_id",), path, collector)
    name = _optional_text(item, ("name",), path, collector)
    masked = _is_masked(item, known_role, path, collector)
    if calls and known_role != "assistant":
        collector.add(
            "role-order", path, f"tool calls in a {known_role}'s turn", "an assistant's turn"
        )
    if len(collector.errors) == before:
        assert content is not None
        message = Message(known_role, content, reasoning, calls, call_id, name)
        turns.add(message, path, masked=masked)


def _read_call_turn(
    item: dict[str, Any], path: FieldPath, turns: TurnList, collector: RowErrorCollector
) -> None:
    """Parse ShareGPT's turn of tool calls; they belong to the assistant's turn right before it."""
    key = "value" if "value" in item else "content"
    if item.get(key) is None:
        _report_missing_key(item, key, (key,), path, collector)
        return
    calls = parse_call_list(item[key], (*path, key), collector)
    masked = _is_masked(item, "assistant", path, collector)
    if not calls:
        return
    if turns.messages and turns.messages[-1].role == "assistant":
        last, last_masked = turns.messages[-1], len(turns.messages) - 1 in turns.masked
        if masked != last_masked:
            what = f"weight {int(not masked)} on calls after a text of weight {int(masked)}"
            fix = "the same weight on both turns: a chat template writes them as one"
            collector.add("weight", path, what, fix)
        turns.messages[-1] = replace(last, tool_calls=last.tool_calls + calls)
    else:
        turns.add(Message("assistant", "", tool_calls=calls), path, masked=masked)


def _read_content(
    item: dict[str, Any], role: Role, has_calls: bool, path: FieldPath, collector: RowErrorCollector
) -> str | None:
    key = next((key for key in ("content", "value") if key in item), None)
    if key is None and has_calls:
        return ""
    if key is None:
        _report_missing_key(item, "value" if "from" in item else "content", (), path, collector)
        return None
    content, here = item[key], (*path, key)
    if isinstance(content, list):
        content = _join_parts(content, here, collector)
        if content is None:
            return None
    if content is None and has_calls:
        return ""
    if not isinstance(content, str):
        collector.add("wrong-type", here, json_type_name(content), "a string")
        return None
    # An empty system message means none, an empty tool result that nothing was returned.
    if role in ("user", "assistant") and not has_calls and not content.strip():
        what = "empty turn" if not content else "a turn of only white space"
        collector.add("empty", here, what, "text, or remove the turn")
        return None
    return content


def _join_parts(
    parts: Sequence[object], path: FieldPath, collector: RowErrorCollector
) -> str | None:
    texts = []
    for index, part in enumerate(parts):
        here = (*path, index)
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            collector.add(
                "wrong-type", here, json_type_name(part), '{"type": "text", "text": "..."}'
            )
            return None
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text"):
            collector.add("not-text", (*here, "type"), f"a part of type {kind!r}", "text only")
            return None
        text = part.get("text", part.get("value"))
        if not isinstance(text, str):
            collector.add("wrong-type", (*here, "text"), json_type_name(text), "a string")
            return None
        texts.append(text)
    return "".join(texts)


def _number_calls(turns: TurnList) -> None:
    """Set the id of each tool result that has none to the next call without a result."""
    open_calls: list[str] = []
    for index, message in enumerate(turns.messages):
        if message.role == "assistant":
            open_calls = [call.id for call in message.tool_calls]
        elif message.role == "tool" and open_calls:
            if message.tool_call_id is None and open_calls[0]:
                turns.messages[index] = replace(message, tool_call_id=open_calls[0])
            call_id = turns.messages[index].tool_call_id
            open_calls.remove(call_id) if call_id in open_calls else open_calls.pop(0)


def _optional_text(
    item: dict[str, Any], names: tuple[str, ...], path: FieldPath, collector: RowErrorCollector
) -> str | None:
    for name in names:
        value = item.get(name)
        if value is not None:
            if isinstance(value, str):
                return value
            collector.add("wrong-type", (*path, name), json_type_name(value), "a string")
    return None


def _is_masked(
    item: dict[str, Any], role: Role, path: FieldPath, collector: RowErrorCollector
) -> bool:
    for name in _WEIGHTS:
        weight = item.get(name)
        if weight is None:
            continue
        if weight not in (0, 1):
            fix = "1 includes the turn in the loss, 0 excludes it"
            found = str(weight) if isinstance(weight, int | float) else json_type_name(weight)
            collector.add("weight", (*path, name), found, fix)
        elif weight == 1 and role != "assistant" and name != "train":
            fix = "0, or remove it: the loss is on the assistant's turns only"
            collector.add("weight", (*path, name), f"weight 1 on a {role}'s turn", fix)
        elif weight == 0 and role == "assistant":
            return True
    return False


def _report_missing_key(
    item: Mapping[str, object],
    key: str,
    names: tuple[str, ...],
    path: FieldPath,
    collector: RowErrorCollector,
) -> None:
    expected = names or ("content", "value")
    near = next(filter(None, (did_you_mean(name, item, cutoff=0.8) for name in expected)), None)
    if near is not None and near not in ("role", "from", "content", "value"):
        collector.add("missing-key", (*path, key), f"missing; did you mean {near!r}?", "rename it")
    else:
        found = f"missing; the turn has {join_names(item) or 'nothing'}"
        collector.add("missing-key", (*path, key), found, "the speaker" if names else "text")
