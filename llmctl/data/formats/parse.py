"""What does a row say? Every format becomes the one `Example` that the other rooms know."""

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
    """Return what a row says, or everything that is wrong with it.

    Args:
        columns: names of ours -> names in the file, where they differ.
        format: the format that the row must have; recognised by its columns where not given.
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
    example = _RowParser(format, row, value, collector).read()
    return tuple(collector.errors) if collector.errors or example is None else example


def rename_columns(value: Mapping[str, object], columns: Mapping[str, str]) -> Mapping[str, object]:
    """Return a row with its columns under our names."""
    if not columns:
        return value
    theirs = {name: ours for ours, name in columns.items()}
    # Where both are there, the column that is mapped takes the place of the one with our name.
    replaced = {ours for ours, name in columns.items() if name in value} - theirs.keys()
    return {theirs.get(name, name): v for name, v in value.items() if name not in replaced}


class _RowParser:
    """Reads one row as one format; whatever is wrong goes to `collector`."""

    def __init__(
        self, format: str, row: RawRow, value: Mapping[str, object], collector: RowErrorCollector
    ) -> None:
        self._format = format
        self._names = {column.name: column.names() for column in FORMATS[format].columns()}
        self._row = row
        self._value = value
        self._collector = collector

    def read(self) -> Example | None:
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
                turns.extend(self._said("user", *self._take("prompt")))
                # Only the completion is learnt, whatever was said before it.
                said = enumerate(turns.messages)
                turns.masked = [index for index, turn in said if turn.role == "assistant"]
                turns.extend(self._said("assistant", *self._take("completion")))
            case _:
                value, path = self._take("messages")
                self._format = "sharegpt" if is_sharegpt(value) else "messages"
                turns = self._system()
                turns.extend(parse_turns(value, path, self._collector))
        return self._example(turns, self._tools())

    def _example(
        self, turns: TurnList, tools: tuple[Tool, ...], rejected: tuple[Message, ...] = ()
    ) -> Example | None:
        # A turn that could not be read leaves a hole: its neighbours are not in a wrong order.
        if not self._collector.errors:
            validate_turn_order(turns, tools, self._collector)
            validate_last_turn(turns, self._collector)
        if self._collector.errors:
            return None
        messages, masked = tuple(turns.messages), tuple(turns.masked)
        return Example(self._row.origin, self._format, messages, tools, rejected, masked)

    def _take(self, name: str) -> tuple[object, FieldPath]:
        """Return a column's value, `None` if the row has none, and where it stands."""
        for known in self._names[name]:
            if self._value.get(known) is not None:
                return self._value[known], (known,)
        return None, (name,)

    def _tools(self) -> tuple[Tool, ...]:
        if "tools" not in self._names:
            return ()
        return parse_tools(*self._take("tools"), self._collector)

    def _system(self) -> TurnList:
        turns = TurnList()
        value, path = self._take("system")
        # People leave the column empty where there is no system prompt.
        if value is not None and value != "":
            text = parse_text(value, path, self._collector)
            if text is not None:
                turns.add(Message("system", text), path)
        return turns

    def _instruction(self, turns: TurnList) -> None:
        """Add alpaca's history, instruction and input."""
        history, path = self._take("history")
        if history is not None and history != "":
            self._history(decode_json_cell(history), path, turns)
        instruction, path = self._take("instruction")
        given, input_path = self._take("input")
        if given is not None and not isinstance(given, str):
            self._collector.add("wrong-type", input_path, json_type_name(given), "text")
        elif isinstance(instruction, str) and given is not None and given.strip():
            text = f"{instruction}\n{given}" if instruction.strip() else given
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

    def _said(self, role: Role, value: object, path: FieldPath) -> TurnList:
        """Read what is either text that `role` says, or a list of turns."""
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
        """Read a pair in any of its shapes: texts, turns after a prompt, whole conversations."""
        lead, tools = self._lead(), self._tools()
        chosen, rejected = (self._side(lead, name) for name in ("chosen", "rejected"))
        collector = self._collector
        if collector.errors:
            return None
        begin = response_start(chosen.messages)
        if begin == 0:
            fix = "a prompt column, or whole conversations as chosen and rejected"
            collector.add("missing-column", ("prompt",), "nothing is asked", fix)
        elif chosen.messages[:begin] != rejected.messages[:begin]:
            what = "begins otherwise than chosen does"
            collector.add("pair", ("rejected",), what, "another answer to the same question")
        elif chosen.messages == rejected.messages:
            collector.add("pair", ("rejected",), "the same as chosen", "a worse answer")
        else:
            validate_turn_order(rejected, tools, collector)
            validate_last_turn(rejected, collector)
        return self._example(chosen, tools, tuple(rejected.messages[begin:]))

    def _lead(self) -> TurnList:
        """Read what leads to both answers of a pair; nothing where they are whole conversations."""
        lead = self._system()
        if self._take("instruction")[0] is not None:
            self._instruction(lead)
            return lead
        for name in ("prompt", "messages"):
            value, path = self._take(name)
            if value is not None:
                lead.extend(self._said("user", value, path))
                break
        return lead

    def _side(self, lead: TurnList, name: str) -> TurnList:
        """Read one answer of a pair, together with what leads to it."""
        value, path = self._take(name)
        if isinstance(value, str) and value.lstrip().startswith("Human:"):
            side = self._dialogue(value, path)
        else:
            side = self._said("assistant", value, path)
        whole = TurnList()
        # A side that is a whole conversation repeats the prompt, but not always the system's.
        for start in range(len(lead.messages)):
            rest = lead.messages[start:]
            if side.messages[: len(rest)] == rest:
                whole.extend(lead.before(start))
                break
        else:
            whole.extend(lead)
        whole.extend(side)
        return whole

    def _dialogue(self, text: str, path: FieldPath) -> TurnList:
        """Read a conversation written as one text, as Anthropic's HH-RLHF has it."""
        turns = TurnList()
        pieces = _SPEAKER.split("\n\n" + text.lstrip())[1:]
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
            turns.extend(self._text(_SPEAKERS[speaker], said.strip(), path))
        return turns


_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _is_turns(value: object) -> bool:
    """Whether a text is a list of turns as a table's cell holds it, not an answer in JSON."""
    turns = decode_json_cell(value)
    if isinstance(turns, dict):
        turns = [turns]
    return isinstance(turns, list) and bool(turns) and all(map(_is_turn, turns))


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )
