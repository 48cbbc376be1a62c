"""Parsing of rows of every format into `Example`s."""

import re
from collections.abc import Mapping

from llmctl.data.formats.columns import FORMATS, detect_format, report_missing_columns
from llmctl.data.formats.tool_calls import decode_json_cell, parse_tools
from llmctl.data.formats.turn_order import response_start, validate_last_turn, validate_turn_order
from llmctl.data.formats.turns import TurnList, is_sharegpt, parse_text, parse_turns
from llmctl.data.rows.json_text import FieldPath, json_type_name
from llmctl.data.rows.row import RawRow
from llmctl.data.rows.row_errors import RowError, RowErrorCollector
from llmctl.types import Example, Message, Role, Tool

__all__ = ["FORMATS", "parse_row"]


def parse_row(
    row: RawRow, *, columns: Mapping[str, str] | None = None, format: str | None = None
) -> Example | tuple[RowError, ...]:
    """Return the example of a row, or all errors in it.

    Args:
        columns: canonical names -> names in the file, where they differ.
        format: the format that the row must have; detected from its columns if not given.
    """
    columns = columns or {}
    if row.errors:
        return row.errors
    collector = RowErrorCollector(row.origin, row.raw, columns)
    value = rename_columns(row.value, columns)
    if format is None:
        format = detect_format(value, collector)
    elif report_missing_columns(format, value, collector):
        format = None
    if format is None:
        return tuple(collector.errors)
    example = _RowParser(format, row, value, collector).parse()
    return tuple(collector.errors) if collector.errors or example is None else example


def rename_columns(value: Mapping[str, object], columns: Mapping[str, str]) -> Mapping[str, object]:
    """Return a row with its columns under their canonical names."""
    if not columns:
        return value
    canonical = {name: own for own, name in columns.items()}
    # A mapped column replaces a column that has the canonical name already.
    replaced = {own for own, name in columns.items() if name in value} - canonical.keys()
    return {canonical.get(name, name): v for name, v in value.items() if name not in replaced}


class _RowParser:
    """Parses one row of one format; errors go to `collector`."""

    def __init__(
        self, format: str, row: RawRow, value: Mapping[str, object], collector: RowErrorCollector
    ) -> None:
        self._format = format
        self._names = {column.name: column.names() for column in FORMATS[format].columns()}
        self._row = row
        self._value = value
        self._collector = collector

    def parse(self) -> Example | None:
        match self._format:
            case "text":
                text = parse_text(*self._take("text"), self._collector)
                return None if text is None else Example(self._row.origin, "text", text=text)
            case "preference":
                return self._preference()
            case "alpaca":
                turns = self._system()
                self._instruction(turns)
                turns.extend(self._text("assistant", *self._take("output")))
            case "prompt-completion":
                turns = self._system()
                turns.extend(self._text_or_turns("user", *self._take("prompt")))
                # The loss is on the completion only, not on assistant turns in the prompt.
                prompt = enumerate(turns.messages)
                turns.masked = [index for index, turn in prompt if turn.role == "assistant"]
                turns.extend(self._text_or_turns("assistant", *self._take("completion")))
            case _:
                value, path = self._take("messages")
                self._format = "sharegpt" if is_sharegpt(value) else "messages"
                turns = self._system()
                turns.extend(parse_turns(value, path, self._collector))
        return self._example(turns, self._tools())

    def _example(
        self, turns: TurnList, tools: tuple[Tool, ...], rejected: tuple[Message, ...] = ()
    ) -> Example | None:
        # A turn with an error is missing from the list, so the order of the rest means nothing.
        if not self._collector.errors:
            validate_turn_order(turns, tools, self._collector)
            validate_last_turn(turns, self._collector)
        if self._collector.errors:
            return None
        messages, masked = tuple(turns.messages), tuple(turns.masked)
        return Example(self._row.origin, self._format, messages, tools, rejected, masked)

    def _take(self, name: str) -> tuple[object, FieldPath]:
        """Return a column's value, `None` if the row has none, and its path."""
        for alias in self._names[name]:
            if self._value.get(alias) is not None:
                return self._value[alias], (alias,)
        return None, (name,)

    def _tools(self) -> tuple[Tool, ...]:
        if "tools" not in self._names:
            return ()
        return parse_tools(*self._take("tools"), self._collector)

    def _system(self) -> TurnList:
        turns = TurnList()
        value, path = self._take("system")
        # Datasets leave the column empty in rows without a system prompt.
        if value is not None and value != "":
            text = parse_text(value, path, self._collector)
            if text is not None:
                turns.add(Message("system", text), path)
        return turns

    def _instruction(self, turns: TurnList) -> None:
        """Add Alpaca's history, instruction and input."""
        history, path = self._take("history")
        if history is not None and history != "":
            self._history(decode_json_cell(history), path, turns)
        instruction, path = self._take("instruction")
        input, input_path = self._take("input")
        if input is not None and not isinstance(input, str):
            self._collector.add("wrong-type", input_path, json_type_name(input), "a string")
        elif isinstance(instruction, str) and input is not None and input.strip():
            text = f"{instruction}\n{input}" if instruction.strip() else input
            turns.add(Message("user", text), path)
        else:
            turns.extend(self._text("user", instruction, path))

    def _history(self, history: object, path: FieldPath, turns: TurnList) -> None:
        if not isinstance(history, list):
            fix = 'a list of pairs: [["question", "answer"]]'
            self._collector.add("wrong-type", path, json_type_name(history), fix)
            return
        for index, pair in enumerate(history):
            here = (*path, index)
            if isinstance(pair, list) and len(pair) == 2:
                turns.extend(self._text("user", pair[0], (*here, 0)))
                turns.extend(self._text("assistant", pair[1], (*here, 1)))
            else:
                found = f"{len(pair)} items" if isinstance(pair, list) else json_type_name(pair)
                self._collector.add("wrong-type", here, found, 'a pair: ["question", "answer"]')

    def _text_or_turns(self, role: Role, value: object, path: FieldPath) -> TurnList:
        """Parse a value that is either the text of a `role`'s message or a list of turns."""
        if _is_turns(value):
            value = decode_json_cell(value)
        if isinstance(value, list | dict):
            return parse_turns(value, path, self._collector)
        return self._text(role, value, path)

    def _text(self, role: Role, value: object, path: FieldPath) -> TurnList:
        turns = TurnList()
        text = parse_text(value, path, self._collector)
        if text is not None:
            turns.add(Message(role, text), path)
        return turns

    def _preference(self) -> Example | None:
        """Parse a preference pair: texts, turns after a prompt, or whole conversations."""
        prompt, tools = self._prompt(), self._tools()
        chosen, rejected = (self._side(prompt, name) for name in ("chosen", "rejected"))
        collector = self._collector
        if collector.errors:
            return None
        start = response_start(chosen.messages)
        if start == 0:
            fix = "a prompt column, or whole conversations as chosen and rejected"
            collector.add("missing-column", ("prompt",), "there is no prompt", fix)
        elif chosen.messages[:start] != rejected.messages[:start]:
            what = "its prompt differs from that of chosen"
            collector.add("pair", ("rejected",), what, "another answer to the same prompt")
        elif chosen.messages == rejected.messages:
            collector.add("pair", ("rejected",), "the same as chosen", "a worse answer")
        else:
            validate_turn_order(rejected, tools, collector)
            validate_last_turn(rejected, collector)
        return self._example(chosen, tools, tuple(rejected.messages[start:]))

    def _prompt(self) -> TurnList:
        """Parse the prompt of a pair; empty if both sides are whole conversations."""
        prompt = self._system()
        if self._take("instruction")[0] is not None:
            self._instruction(prompt)
            return prompt
        for name in ("prompt", "messages"):
            value, path = self._take(name)
            if value is not None:
                prompt.extend(self._text_or_turns("user", value, path))
                break
        return prompt

    def _side(self, prompt: TurnList, name: str) -> TurnList:
        """Parse one side of a pair and put the prompt before it."""
        value, path = self._take(name)
        if isinstance(value, str) and value.lstrip().startswith("Human:"):
            side = self._dialogue(value, path)
        else:
            side = self._text_or_turns("assistant", value, path)
        whole = TurnList()
        # A side that is a whole conversation repeats the prompt, but not always the system message.
        for start in range(len(prompt.messages)):
            rest = prompt.messages[start:]
            if side.messages[: len(rest)] == rest:
                whole.extend(prompt.before(start))
                break
        else:
            whole.extend(prompt)
        whole.extend(side)
        return whole

    def _dialogue(self, text: str, path: FieldPath) -> TurnList:
        """Parse a conversation written as one text, as in Anthropic's HH-RLHF."""
        turns = TurnList()
        pieces = _SPEAKER.split("\n\n" + text.lstrip())[1:]
        for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
            turns.extend(self._text(_SPEAKERS[speaker], text.strip(), path))
        return turns


_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _is_turns(value: object) -> bool:
    """Whether a table's cell holds a list of turns as JSON, not an answer that is JSON."""
    turns = decode_json_cell(value)
    if isinstance(turns, dict):
        turns = [turns]
    return isinstance(turns, list) and bool(turns) and all(map(_is_turn, turns))


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )
