"""Table of chat templates: what each prints for an assistant's turn, read back as that turn.

Run `python -m tests.compat.tool_formats FOLDER [NAME...]` with a folder of Jinja files; with
`--write` it writes the tables of docs/tools.md from the registry. A template
is its own judge: what it prints for the assistant's turn, less the prompt, is what its model
writes. Each text is read whole and in two pieces, cut at every character; then the parsed turn is
rendered again, alone and with results of its calls, and must begin with the same text.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.engine.chat.formats.element_calls import ElementCalls
from llmctl.engine.chat.formats.families import TOOL_CALL_FORMATS
from llmctl.engine.chat.formats.named_calls import MistralCalls
from llmctl.engine.chat.formats.parameter_calls import ParameterCalls
from llmctl.engine.chat.formats.pythonic_calls import PythonicCalls
from llmctl.engine.chat.formats.reasoning_families import REASONING_FORMATS
from llmctl.engine.chat.parsing.channels import Channels
from llmctl.engine.chat.response_parser import ResponseParserFactory
from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.engine.chat.template_probe import common_length
from llmctl.errors import LlmctlError
from llmctl.types import GenerationRequest, Message, Tool, ToolCall
from tests.tiny import byte_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "tools.md"

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name"},
            "days": {"type": "integer", "description": "How many"},
            "opts": {"type": "object", "description": "More", "additionalProperties": True},
        },
        "required": ["city"],
    },
)
ADD = Tool(
    "add",
    "Adds",
    {
        "type": "object",
        "properties": {
            "a": {"type": "number", "description": "First"},
            "b": {"type": "string", "description": "Second"},
        },
    },
)
TOOLS = (WEATHER, ADD)
_CITY = {"city": 'Genève "x"\n', "days": 3, "opts": {"a": [1, "x", True], "b": {"c": "d"}}}
_FIRST = ToolCall("get_weather", json.dumps(_CITY, ensure_ascii=False), "functions.get_weather:0")
_SECOND = ToolCall("add", json.dumps({"a": 1.5, "b": "12"}), "functions.add:1")
_ASKED = (Message("system", "Be kind."), Message("user", "Ask"))
_REASONING = "Clouds come.\n\nFrom the west."
_TURNS = {
    "text": Message("assistant", "It rains."),
    "call": Message("assistant", "", tool_calls=(_FIRST,)),
    "calls": Message("assistant", "", tool_calls=(_FIRST, _SECOND)),
    "text and call": Message("assistant", "I ask.", tool_calls=(_FIRST,)),
    "reasoning": Message("assistant", "It rains.", reasoning=_REASONING),
    "reasoning and call": Message("assistant", "", reasoning=_REASONING, tool_calls=(_FIRST,)),
}
_THINKING: tuple[dict[str, object], ...] = (
    {},
    {"enable_thinking": True},
    {"thinking": True},
    {"thinking_mode": "thinking", "enable_thinking": True},
    {"reasoning_effort": "high", "enable_thinking": True},
)
# Tokens that end a turn. The engine stops at the first.
_STOP = re.compile("<｜end▁of▁sentence｜>|<SPECIAL_12>")
_END = re.compile(
    r"(\s*(<\|im_end\|>|<end_of_turn>|<\|e[oO][tm]_id\|>|<\|end_of_text\|>|<\|END_OF_TURN_TOKEN\|>"
    r"|<｜end▁of▁sentence｜>|\[e~\[|<seed:eos>|<end_of_sentence>|<SPECIAL_12>|<sep>|<turn\|>"
    r"|<\|tool_response>|<\|return\|>|<\|call\|>|<\|eot\|>|<\|end\|>|<\|calls\|>|<\|message_sep\|>"
    r"|</assistant>|<\|role_end\|>|<｜hy_eos:opensource｜>|<\|end_of_msg\|>|<\|assistant_end\|>))*\s*$"
)
_NEXT_TURN = re.compile(r"<\|START_OF_TURN_TOKEN\|>.*$", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """What a template prints for one turn."""

    history: str
    """What the template prints before the turn."""
    prompt: str
    written: str
    tools: Sequence[Tool]
    variables: dict[str, object]


@dataclass(frozen=True)
class Result:
    """How one turn was read."""

    shows_call: bool
    shows_reasoning: bool
    read: bool
    cut: bool
    round_trip: bool
    followed: bool
    detail: str


class TemplateJudge:
    """One template, and the parser that llmctl chooses for it."""

    def __init__(self, source: str) -> None:
        tokenizer = byte_tokenizer(source)
        self.template = ChatTemplate.of(tokenizer)
        self.parsers = ResponseParserFactory(tokenizer, self.template)
        self.asked: Sequence[Message] = _ASKED

    def text(self, messages: Sequence[Message], **options: Any) -> str:
        """Return a conversation as the template renders it."""
        text = self.template.render_text(messages, RenderOptions(**options))
        return self.template.escaper.unescape(text)

    def turns(self, message: Message) -> Iterator[Turn]:
        """Yield what the template prints for a turn, with each way to switch reasoning on."""
        for tools in ((), TOOLS) if not message.tool_calls else (TOOLS,):
            for variables in _THINKING if message.reasoning else _THINKING[:1]:
                options = {"tools": tools, "template_kwargs": variables}
                best: tuple[int, str, str] | None = None
                for asked in (_ASKED, _ASKED[1:]):
                    try:
                        prompt = self.text(asked, **options)
                        whole = self.text([*asked, message], add_generation_prompt=False, **options)
                    except LlmctlError:
                        continue
                    lost = len(prompt) - common_length(prompt, whole)
                    if best is None or lost < best[0]:
                        best = lost, prompt, whole
                        self.asked = asked
                if best is None:
                    continue
                lost, prompt, whole = best
                common = len(prompt) - lost
                begun = re.search(r"[<\[][^<>\[\]]{0,24}$", prompt[:common])
                if prompt[common:].strip() and begun is not None:
                    common = begun.start()  # the turn has another mark there
                if lost > 40 and (at := whole.find(prompt[-20:], common - 20)) >= 0:
                    common = at + 20  # the prompt has another message before the turn
                    prompt = whole[:common]
                written = _STOP.split(whole[common:])[0]
                written = _END.sub("", _NEXT_TURN.sub("", written))
                yield Turn(prompt[:common], prompt[:common], written, tools, variables)
                # The turn may leave out how the prompt begins it.
                yield Turn(prompt[:common], prompt, written.lstrip("\n"), tools, variables)

    def result(self, name: str) -> Result | None:
        """Return how a turn was read; `None` if the template does not print it."""
        message = _TURNS[name]
        best: Result | None = None
        for turn in self.turns(message):
            shown = self._result(message, turn)
            if shown is None:
                continue
            if best is None or (shown.read, shown.round_trip) > (best.read, best.round_trip):
                best = shown
            if shown.read and shown.round_trip:
                break
        return best

    def _result(self, message: Message, turn: Turn) -> Result | None:
        calls = all(call.name in turn.written for call in message.tool_calls)
        reasoning = message.reasoning is not None and message.reasoning in turn.written
        if not calls or (message.reasoning and not reasoning):
            return None
        if not message.tool_calls and message.content not in turn.written:
            return None
        content = message.content if message.content in turn.written else ""
        expected = (content, message.reasoning or "", _calls(message))
        parsed = self.read(turn, [turn.written])
        got = (parsed.content.strip(), (parsed.reasoning or "").strip(), _calls(parsed))
        right = got == expected
        if "analysis" in turn.written:  # gpt-oss: text beside a call is reasoning
            right |= got == ("", content, _calls(message))
        same = right and all(
            self.read(turn, [turn.written[:at], turn.written[at:]]) == parsed
            for at in range(1, len(turn.written))
        )
        return Result(
            bool(message.tool_calls), reasoning, right, same, right and self.again(turn, parsed),
            right and self.followed(turn, parsed),
            "" if right else f"{turn.prompt[-24:]!r} {turn.written!r} read as {got}",
        )  # fmt: skip

    def read(self, turn: Turn, pieces: Sequence[str]) -> Message:
        """Return the turn that the parser reads from pieces of text."""
        request = GenerationRequest(tuple(self.asked), tools=tuple(turn.tools))
        parser = self.parsers.format(request, turn.prompt).new_parser()
        if parser is None:
            return Message("assistant", "".join(pieces))
        deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.end()
        calls: list[ToolCall] = []
        ids: list[str] = []
        for call in (delta.call for delta in deltas if delta.call is not None):
            if ids and ids[-1] == call.id:
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + call.arguments)
            else:
                ids.append(call.id)
                # Ids that the parser makes up are random.
                generated = re.fullmatch(r"call_[0-9a-f]{24}", call.id)
                calls.append(replace(call, id=f"call{len(calls)}" if generated else call.id))
        return Message(
            "assistant",
            "".join(delta.text for delta in deltas),
            "".join(delta.reasoning for delta in deltas) or None,
            tuple(calls),
        )

    def again(self, turn: Turn, parsed: Message) -> bool:
        """Return whether the conversation with the parsed turn begins with what was written."""
        options = {"tools": turn.tools, "template_kwargs": turn.variables}
        begun = turn.history + turn.written.rstrip()
        text = self.text([*self.asked, parsed], add_generation_prompt=False, **options)
        return text.startswith(begun)

    def followed(self, turn: Turn, parsed: Message) -> bool:
        """Return whether the prompt with the results of the calls begins with what was written."""
        results = [
            Message("tool", "found", tool_call_id=call.id, name=call.name)
            for call in parsed.tool_calls
        ]
        options = {"tools": turn.tools, "template_kwargs": turn.variables}
        try:
            text = self.text([*self.asked, parsed, *results], **options)
        except LlmctlError:
            return False
        return text.startswith(turn.history + turn.written.rstrip())


def _calls(message: Message) -> list[tuple[str, Any]]:
    calls = []
    for call in message.tool_calls:
        try:
            calls.append((call.name, json.loads(call.arguments)))
        except ValueError:
            calls.append((call.name, call.arguments))
    return calls


_STREAMING: dict[type, str] = {
    PythonicCalls: "argument by argument",
    ElementCalls: "argument by argument",
    ParameterCalls: "strings in pieces, other values one by one",
    MistralCalls: "in pieces; a list with ids call by call",
}
_ONE_CALL = {"gpt_oss", "gigachat", "llama3_json"}
_WITHOUT_GRAMMAR = (ElementCalls,)


def table_lines() -> list[str]:
    """Return the table of formats of docs/tools.md, from the registry."""
    header = (
        *("families", "format", "recognised by", 'a call of `add(a=1, b="x")`'),
        *("calls per response", "streamed arguments", "required calls", "source"),
    )
    rows = []
    for known in TOOL_CALL_FORMATS:
        names = ", ".join(f"`{name}`" for name in (known.name, *known.aliases))
        signs = " or ".join(" and ".join(map(_code, parts)) for parts in known.signatures)
        if known.start:
            signs += f"{' or ' if signs else ''}a turn that begins with {_code(known.start)}"
        plain = isinstance(known.reader, Channels) and known.reader.calls is None
        without = isinstance(known.reader, _WITHOUT_GRAMMAR) or (
            isinstance(known.reader, Channels) and not plain
        )
        rows.append(
            (
                known.families,
                names,
                signs or "nothing: the default",
                _code(known.example),
                "one" if known.name in _ONE_CALL else "several",
                _STREAMING.get(type(known.reader), "in pieces"),
                "JSON" if without else "own format",
                known.source,
            )
        )
    return _table(header, rows)


def reasoning_lines() -> list[str]:
    """Return the table of reasoning of docs/tools.md, from the registry."""
    rows = [
        (
            known.families,
            ", ".join(f"`{name}`" for name in (known.name, *known.aliases)),
            _code(known.open),
            _code(known.close),
        )
        for known in REASONING_FORMATS
    ]
    return _table(("families", "format", "begins", "ends"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def _code(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("|", "\\|").replace("probe_of_tools", "add").strip()
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def write_tables() -> None:
    """Replace the tables in docs/tools.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, lines in (("calls", table_lines()), ("reasoning", reasoning_lines())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    DOCUMENT.write_text(text, encoding="utf-8")


_LETTERS = {"r": "read", "c": "cut", "t": "round_trip", "n": "followed"}


def main(folder: str, *names: str) -> None:
    """Print a line for each template, and the figures."""
    logging.disable(logging.CRITICAL)
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix == ".jinja")
    calls: dict[str, bool] = {}
    reasoning: dict[str, bool] = {}
    trips: dict[str, bool] = {}
    followed: dict[str, bool] = {}
    for path in paths:
        if names and not any(name in path.name for name in names):
            continue
        judge = TemplateJudge(path.read_text(encoding="utf-8"))
        results = {name: judge.result(name) for name in _TURNS}
        found = {name: result for name, result in results.items() if result is not None}
        label = {
            name: "-" if r is None else "".join(
                letter if getattr(r, field) else "."
                for letter, field in _LETTERS.items()
            )
            for name, r in results.items()
        }  # fmt: skip
        known = (judge.parsers.calls, judge.parsers.reasoning)
        chosen = "/".join("-" if format is None else format.name for format in known)
        print(f"{path.stem[:36]:36} {chosen:24}", *(f"{n}={v}" for n, v in label.items()))
        for name, result in found.items():
            if names and result.detail:
                print(f"    {name}: {result.detail}")
        with_calls = [r for r in found.values() if r.shows_call]
        if with_calls:
            calls[path.stem] = all(r.read and r.cut for r in with_calls)
        with_reasoning = [r for r in found.values() if r.shows_reasoning]
        if with_reasoning:
            reasoning[path.stem] = all(r.read and r.cut for r in with_reasoning)
        if found:
            followed[path.stem] = all(r.followed for r in with_calls)
            trips[path.stem] = all(r.round_trip for r in found.values())
    for title, figures in (
        ("calls", calls),
        ("reasoning", reasoning),
        ("round trip", trips),
        ("prompt with results", followed),
    ):
        bad = [name for name, good in figures.items() if not good]
        print(f"{title}: {sum(figures.values())} of {len(figures)}; not: {', '.join(bad)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_tables()
    else:
        main(*sys.argv[1:])
