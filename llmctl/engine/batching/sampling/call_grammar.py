"""Grammars of tool calls in a model's own format, in llguidance's dialect of Lark."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from llmctl.engine.chat.call_layout import choices
from llmctl.engine.chat.parsing.parameter_types import ToolParameters
from llmctl.engine.chat.tool_choice import MAX_TOOL_CALLS
from llmctl.types import CALL_ID, INDEX, NAME, CallLayout, ParameterLayout

EMPTY = '""'

JsonRule = Callable[[str], Mapping[str, Any]]
"""Returns the schema, ready to be enforced, at a place of the whole one: `#/$defs/tool0`."""


class CallGrammar:
    """Builds the grammar of calls of some tools.

    Args:
        layout: how the model writes calls.
        special: ids of the special tokens by their texts.
        end_ids: tokens that end a response; the grammar ends before one.
        json_rule: returns schemas.
    """

    def __init__(
        self,
        layout: CallLayout,
        special: Mapping[str, int],
        end_ids: Collection[int],
        json_rule: JsonRule,
    ) -> None:
        self._layout = layout
        self._special = special
        self._end_ids = end_ids
        self._json_rule = json_rule
        self._rules: list[str] = []
        longest_first = sorted(special, key=lambda text: -len(text))
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def build(
        self,
        tools: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        count: int,
        *,
        optional: bool = False,
    ) -> str:
        """Return the grammar.

        Args:
            tools: the schema of each tool's arguments.
            names: the name of each tool.
            count: the most calls; one if the format has one only.
            optional: allow free text, in which only calls follow the grammar.
        """
        layout = self._layout
        count = min(count, MAX_TOOL_CALLS) if layout.further else 1
        if optional and layout.further.startswith(layout.end):
            count = 1  # a further call has a mark of its own
        for number, schema in enumerate(tools):
            if layout.parameters is None:
                self._json(f"args{number}", f"#/$defs/tool{number}")
            else:
                self._parameters(number, schema, layout.parameters)
        end = self._text(layout.end, at_end=True)
        if optional:
            self._free_text(f"call0 more1 {end}")
        else:
            self._rules.append(f"start: SPACE? call0 more1 {end}")
        for index in range(count):
            text = layout.further if index else layout.first
            if optional and not index:
                text = text.removeprefix(self._trigger)
            text = text.replace(INDEX, str(layout.first_index + index))
            calls = []
            for number, name in enumerate(names):
                calls.append(f"{self._text(text.replace(NAME, name))} args{number}")
            self._rules.append(f"call{index}: " + " | ".join(calls))
        for index in range(1, count):
            self._rules.append(f"more{index}: (call{index} more{index + 1})?")
        self._rules.append(f'more{max(count, 1)}: ""')
        self._rules.append(r"SPACE: /[ \n]{1,2}/")
        self._rules.append("CALL_ID: /[a-zA-Z0-9]{9}/")
        return "\n".join(self._rules)

    @property
    def _trigger(self) -> str:
        """What calls begin with in free text: the mark, or the token that begins it."""
        token = self._tokens.match(self._layout.opening)
        return self._layout.opening if token is None else token[0]

    def _free_text(self, calls: str) -> None:
        """Add rules of free text in which calls follow the mark."""
        trigger = self._trigger
        others = sorted(set(self._special.values()) - {*self._end_ids, self._special.get(trigger)})
        free = ["TEXT"] + [f"<[{','.join(map(str, others))}]>"] * bool(others)
        if trigger in self._special:
            self._rules.append("TEXT: /(?s:.+)/")
            free.append(f"<[{self._special[trigger]}]> {calls}")
        else:
            mark = _escaped(trigger)
            self._rules.append(f"TEXT: /(?s:.+)/ & ~/(?s:.*){mark}(?s:.*)/")
            self._rules.append(f"head[lazy]: /(?s:.*){mark}/")
            free.append(f"head {calls}")
        self._rules.append(f"start: ({' | '.join(free)})*")

    def _json(self, rule: str, place: str) -> None:
        schema = json.dumps(self._json_rule(place), ensure_ascii=False)
        self._rules.append(f"{rule}: %json {schema}")

    def _parameters(
        self, number: int, schema: Mapping[str, Any], parameters: ParameterLayout
    ) -> None:
        types = ToolParameters(schema)
        names = []
        for index, (key, part) in enumerate(schema.get("properties", {}).items()):
            rule = f"arg{number}x{index}"
            names.append((rule, key in schema.get("required", [])))
            head = parameters.key + key
            values = choices(part)
            if values is not None:
                if parameters.string_pattern:
                    values = [repr(f'"{value}')[2:-1] for value in values]
                texts = (head + parameters.before_string + v + parameters.end for v in values)
                self._rules.append(f"{rule}: " + " | ".join(map(self._text, texts)))
            elif types.may_be_string(key):
                opening = self._text(head + parameters.before_string)
                self._rules.append(f"{rule}: {opening} {self._value(rule, parameters)}")
            else:
                escaped = key.replace("~", "~0").replace("/", "~1")
                self._json(f"{rule}json", f"#/$defs/tool{number}/properties/{escaped}")
                opening = self._text(head + parameters.before_json)
                json_end = parameters.end if parameters.json_end is None else parameters.json_end
                self._rules.append(f"{rule}: {opening} {rule}json {self._text(json_end)}")
        self._sequence(f"args{number}", names, self._text(parameters.separator))

    def _sequence(self, rule: str, names: Sequence[tuple[str, bool]], separator: str) -> None:
        """Add a rule of elements, of which some are optional, with a separator between them."""
        if separator == EMPTY:
            elements = (name if required else f"{name}?" for name, required in names)
            self._rules.append(f"{rule}: {' '.join(elements) or EMPTY}")
            return
        self._rules.append(f"{rule}: {rule}first0")
        for index, (name, required) in enumerate(names):
            rest = f"{rule}then{index + 1}"
            begun = f"{name} {rest}" + ("" if required else f" | {rule}first{index + 1}")
            self._rules.append(f"{rule}first{index}: {begun}")
            more = f"{separator} {name} {rest}" + ("" if required else f" | {rest}")
            self._rules.append(f"{rule}then{index}: {more}")
        self._rules.append(f"{rule}first{len(names)}: {EMPTY}")
        self._rules.append(f"{rule}then{len(names)}: {EMPTY}")

    def _value(self, rule: str, parameters: ParameterLayout) -> str:
        """Return the elements of any text up to the mark that ends it."""
        end = parameters.end
        if parameters.string_pattern:
            self._rules.append(f"{rule.upper()}: /{parameters.string_pattern}{end}/")
            return rule.upper()
        lead = self._tokens.match(end.lstrip())
        if lead is not None:  # text has no special tokens
            space = end[: len(end) - len(end.lstrip())]
            self._rules.append(f"{rule.upper()}: /(?s:.+)/")
            return f"{rule.upper()}? {self._text(end[len(space) :])}"
        mark = end.rstrip()
        self._rules.append(f"{rule}value[lazy]: /(?s:.*){_escaped(mark)}/")
        return f"{rule}value {self._text(end[len(mark) :])}"

    def _text(self, text: str, *, at_end: bool = False) -> str:
        """Return the elements of a text, in which special tokens are those tokens."""
        elements = []
        for part in re.split(f"({CALL_ID}|{self._tokens.pattern})", text):
            if part == CALL_ID:
                elements.append("CALL_ID")
            elif part in self._special:
                if at_end and self._special[part] in self._end_ids:
                    break
                elements.append(f"<[{self._special[part]}]>")
            elif part:
                elements.append(json.dumps(part, ensure_ascii=False))
        return " ".join(elements) or EMPTY


def _escaped(text: str) -> str:
    """Return a regular expression that matches only this text."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)
