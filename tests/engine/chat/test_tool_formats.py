"""Every format of tool calls: what a template in it prints is read back as the same calls."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.engine.batching.sampling.grammar import GrammarCompiler, GrammarMatcher
from llmctl.engine.chat.formats.families import GENERIC, TOOL_CALL_FORMATS
from llmctl.engine.chat.formats.format_parser import FormatParser, response_reader
from llmctl.engine.chat.formats.format_types import ReasoningFormat, ToolCallFormat
from llmctl.engine.chat.formats.reasoning_families import REASONING_FORMATS
from llmctl.engine.chat.formats.registry import named_format, tool_call_formats
from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.chat.response_parser import ResponseParserFactory
from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import ConfigError
from llmctl.types import GenerationRequest, Message, ModelSpec, SamplingParams, Tool, ToolCall
from tests.compat import tool_formats
from tests.tiny import byte_tokenizer, save_tiny_model
from tests.tool_templates import TEMPLATES

PAINT = Tool(
    "paint",
    "paints",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "opts": {"type": "object"},
        },
    },
)
ADD = Tool(
    "add",
    "adds",
    {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}},
)
TOOLS = (PAINT, ADD)
ARGUMENTS = {"city": 'Genève "x"\n', "days": 3, "opts": {"a": [1, "x", True], "b": {"c": "}]"}}}
CALLS = (
    ToolCall("paint", json.dumps(ARGUMENTS, ensure_ascii=False), "abcdefgh1"),
    ToolCall("add", '{"a": 1.5, "b": "12"}', "abcdefgh2"),
)

ASKED = (Message("user", "?"),)
# Its values are elements; its marks cannot be in a text.
NESTED = "minimax_m3"
FORMATS = {known.name: known for known in TOOL_CALL_FORMATS}


def joined(deltas: Sequence[ResponseDelta]) -> tuple[str, str, list[ToolCall]]:
    """Return answer, reasoning and calls; ids that are made up are left out."""
    calls: dict[str, ToolCall] = {}
    for delta in deltas:
        if delta.call is not None:
            before = calls.get(delta.call.id, replace(delta.call, arguments=""))
            arguments = before.arguments + delta.call.arguments
            calls[delta.call.id] = replace(before, arguments=arguments)
    shown = [replace(c, id="" if c.id.startswith("call_") else c.id) for c in calls.values()]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), shown


def read(known: ToolCallFormat, pieces: Sequence[str]) -> tuple[str, str, list[ToolCall]]:
    reader = response_reader(known, None, offered=True, opened=False)
    assert reader is not None
    parser = FormatParser(reader, TOOLS)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return joined([*deltas, *parser.end()])


def cuts(text: str) -> Iterator[list[str]]:
    yield list(text)
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]


class Model:
    """A template, the format chosen for it, and what it prints."""

    def __init__(self, name: str) -> None:
        tokenizer = byte_tokenizer(TEMPLATES[name])
        self.template = ChatTemplate.of(tokenizer)
        self.parsers = ResponseParserFactory(tokenizer, self.template)
        self.prompt = self.text(ASKED, add_generation_prompt=True)

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        options = RenderOptions(tools=TOOLS, add_generation_prompt=add_generation_prompt)
        text = self.template.render_text(messages, options)
        return self.template.escaper.unescape(text)

    def written(self, turn: Message) -> str:
        text = self.text([*ASKED, turn])
        assert text.startswith(self.prompt)
        return text[len(self.prompt) :].removesuffix("\n").removesuffix("<|im_end|>")

    def read(self, pieces: Sequence[str]) -> tuple[str, str, list[ToolCall]]:
        request = GenerationRequest(ASKED, tools=TOOLS)
        parser = self.parsers.format(request, self.prompt).new_parser()
        assert parser is not None
        deltas = [delta for piece in pieces for delta in parser.feed(piece)]
        return joined([*deltas, *parser.end()])


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def test_every_format_has_a_template_here() -> None:
    assert set(TEMPLATES) | {NESTED} == set(FORMATS)


def test_the_format_is_recognised_by_what_the_template_prints(model: Model) -> None:
    assert model.parsers.calls is not None
    assert model.template.probe.call_text
    assert TEMPLATES[model.parsers.calls.name] == model.template.source


@pytest.mark.parametrize(("content", "count"), [("", 2), ("I ask.", 1)])
def test_what_the_template_prints_is_read_back_however_it_is_cut(
    model: Model, content: str, count: int
) -> None:
    assert model.parsers.calls is not None
    if content and model.parsers.calls.name in ("llama3_json", "pythonic", "json"):
        pytest.skip("a call without a mark is the whole response")
    turn = Message("assistant", content, tool_calls=CALLS[:count])
    written = model.written(turn)
    whole = text, _, calls = model.read([written])
    assert text == content
    assert [(c.name, json.loads(c.arguments)) for c in calls] == [
        (c.name, json.loads(c.arguments)) for c in turn.tool_calls
    ]
    for pieces in cuts(written) if count == 2 else [list(written)]:
        assert model.read(pieces) == whole
    again = replace(turn, tool_calls=tuple(calls))
    assert model.written(again) == written


def test_the_arguments_of_a_call_may_hold_its_marks(model: Model) -> None:
    assert model.parsers.calls is not None
    for mark in model.parsers.calls.reader.marks:
        arguments = json.dumps({"city": f"Write {mark} at the end"})
        turn = Message("assistant", "", tool_calls=(ToolCall("paint", arguments, "abcdefgh1"),))
        written = model.written(turn)
        if mark == '<|"|>':
            continue  # it ends a string; the template cannot escape it
        for pieces in ([written], list(written)):
            text, _, calls = model.read(pieces)
            assert (text, [c.name for c in calls]) == ("", ["paint"])
            assert json.loads(calls[0].arguments) == json.loads(arguments)


@pytest.mark.parametrize("known", TOOL_CALL_FORMATS, ids=lambda known: known.name)
def test_the_example_of_a_format_is_a_call_in_it(known: ToolCallFormat) -> None:
    for pieces in cuts(known.example):
        text, _, (call,) = read(known, pieces)
        assert text == ""
        assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1, "b": "x"})


@pytest.mark.parametrize("known", TOOL_CALL_FORMATS, ids=lambda known: known.name)
def test_a_call_that_is_cut_off_is_seen_as_call_or_as_text(known: ToolCallFormat) -> None:
    for length in range(1, len(known.example)):
        part = known.example[:length]
        text, _, calls = read(known, [part])
        if calls:
            assert calls[0].name == "add"
            assert text == ""
        else:
            assert text.strip() == part.strip() or known.name in ("gpt_oss", "muse")


@pytest.mark.parametrize("known", TOOL_CALL_FORMATS, ids=lambda known: known.name)
def test_marks_in_an_answer_without_a_call_are_answer(known: ToolCallFormat) -> None:
    openings = () if known.name in ("gpt_oss", "muse") else known.reader.openings  # type: ignore[union-attr]
    for opening in openings:
        for text in (f"So {opening} opens it; and so on.", f"{opening}! No.", f"`{opening}`"):
            for pieces in cuts(text):
                assert read(known, pieces) == (text, "", [])
    code = f"Like this:\n```\n{known.example}\n```\nDone."
    if openings and known.name not in ("command_r", "functionary", "minimax_m3"):
        assert read(known, list(code)) == (code, "", [])


# Formats that no grammar is made of: required calls are JSON there.
WITHOUT_GRAMMAR = {"muse"}


def allowed(matcher: GrammarMatcher, ids: Sequence[int]) -> bool:
    """Whether a grammar allows tokens and then the end."""
    for token_id in ids:
        if matcher.next_mask()[token_id]:
            return False
        matcher.accept(token_id)
    return not matcher.next_mask()[257]


def test_required_calls_are_constrained_in_the_format_of_the_template(model: Model) -> None:
    assert model.parsers.calls is not None
    name = model.parsers.calls.name
    calls = CALLS[: 1 if name in ("gpt_oss",) else 2]
    written = model.written(Message("assistant", "", tool_calls=calls)).rstrip("\n")
    request = GenerationRequest(ASKED, tools=TOOLS, required_tools=("paint", "add"))
    grammar = model.parsers.grammar(request)
    assert grammar is not None
    assert (grammar.calls is None) == (name in WITHOUT_GRAMMAR)
    if grammar.calls is None:
        return
    tokenizer = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [257])
    if name == "gpt_oss":
        written = written.removesuffix("<|call|>") + "<|call|>"
    assert allowed(compiler.compile(grammar), tokenizer(written).input_ids)
    wrong = written.replace("3", "three", 1)
    assert wrong != written
    assert not allowed(compiler.compile(grammar), tokenizer(wrong).input_ids)
    assert not allowed(compiler.compile(grammar), tokenizer("No." + written).input_ids)
    parser = model.parsers.format(request, model.prompt).new_parser()
    assert parser is not None
    text, _, read_calls = joined([*parser.feed(written), *parser.end()])
    assert text == ""
    assert [c.name for c in read_calls] == [c.name for c in calls]


@pytest.mark.parametrize("name", ["lfm2", "gemma4", "qwen3_coder", "hermes"])
def test_arguments_are_constrained_by_their_schema(name: str) -> None:
    model = Model(name)
    properties = {
        "who": {"type": "string", "enum": ["it's", "a\\b"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "n": {"type": "integer", "minimum": 3},
    }
    tool = Tool("paint", "", {"type": "object", "properties": properties, "required": ["n"]})
    request = GenerationRequest(ASKED, tools=(tool,), required_tools=("paint",))
    grammar = model.parsers.grammar(request)
    assert grammar is not None
    assert grammar.calls is not None
    tokenizer = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [257])
    for arguments, valid in (
        ({"who": "it's", "note": "so", "n": 4}, True),
        ({"n": 4}, True),
        ({"note": "so", "n": 40}, True),
        ({"note": "so"}, False),
        ({"who": "me", "n": 4}, False),
        ({"n": 2}, False),
        ({"n": 4, "other": 1}, False),
    ):
        call = ToolCall("paint", json.dumps(arguments))
        written = model.written(Message("assistant", "", tool_calls=(call,)))
        if name == "lfm2":
            written = written.replace("it's", "it\\'s")
        assert allowed(compiler.compile(grammar), tokenizer(written).input_ids) == valid, arguments


@pytest.mark.parametrize("name", ["hermes", "kimi_k2", "lfm2", "glm45", "mistral", "gemma4"])
@pytest.mark.parametrize("special", [False, True])
def test_calls_of_strict_tools_are_constrained_within_free_text(name: str, special: bool) -> None:
    model = Model(name)
    strict = tuple(replace(tool, strict=True) for tool in TOOLS)
    grammar = model.parsers.strict_grammar(GenerationRequest(ASKED, tools=strict))
    assert grammar is not None
    assert model.parsers.strict_grammar(GenerationRequest(ASKED, tools=TOOLS)) is None
    tokenizer = byte_tokenizer()
    if special:
        assert grammar.calls is not None
        marks = ["<|other|>", grammar.calls.opening]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [257])

    def ok(text: str) -> bool:
        return allowed(compiler.compile(grammar), tokenizer(text).input_ids)

    written = model.written(Message("assistant", "", tool_calls=CALLS)).strip()
    assert ok("It rains <b> [TOOL, and so on")
    assert ok(written)
    assert ok(f"I ask.\n{written}")
    assert ok(f"I ask.\n{written}\nDone.")
    assert not ok(written.replace("3", '"3"', 1))
    assert not ok(f"I ask.\n{written.replace('paint', 'draw')}")
    if special:
        assert ok(f"<|other|>I ask.<|other|>{written}")


def test_a_schema_that_a_format_cannot_hold_is_enforced_in_json() -> None:
    model = Model("qwen3_coder")
    code = {"type": "string", "pattern": "^[a-z]{2}$"}
    tool = Tool("paint", "", {"type": "object", "properties": {"code": code}})
    request = GenerationRequest(ASKED, tools=(tool,), required_tools=("paint",))
    grammar = model.parsers.grammar(request)
    assert grammar is not None
    assert grammar.calls is None
    parser = model.parsers.format(request, model.prompt).new_parser()
    assert parser is not None
    _, _, (call,) = joined(parser.feed('[{"name": "paint", "arguments": {"code": "ab"}}]'))
    assert (call.name, call.arguments) == ("paint", '{"code": "ab"}')


def test_marks_that_are_special_tokens_are_read_and_constrained(tmp_path: Path) -> None:
    marks = ("section_begin", "call_begin", "call_argument_begin", "call_end", "section_end")
    names = [f"<|tool_{mark.replace('section', 'calls_section')}|>" for mark in marks]
    tokenizer = byte_tokenizer(TEMPLATES["kimi_k2"])
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    folder = save_tiny_model(
        tmp_path / "model", vocab_size=len(tokenizer), max_position_embeddings=1024
    )
    tokenizer.save_pretrained(folder)
    choice = {"type": "string", "enum": ["red", "blue"]}
    paint = Tool("paint", "", {"properties": {"c": choice}, "required": ["c"]})
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        request = GenerationRequest(
            ASKED,
            tools=(paint,),
            required_tools=("paint",),
            parallel_tool_calls=False,
            sampling=SamplingParams(seed=1, temperature=1.0, logprobs=0),
        )
        (answer,) = engine.generate(request).choices
    (call,) = answer.tool_calls
    assert (call.name, call.id) == ("paint", "functions.paint:0")
    assert json.loads(call.arguments)["c"] in ("red", "blue")
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    written = [entry.chosen.token_id for entry in answer.logprobs]
    assert {tokenizer.get_vocab()[name] for name in names} <= set(written)


PLUGIN = """
from llmctl.engine.chat.formats.format_types import ToolCallFormat
from llmctl.engine.chat.formats.json_calls import JsonCalls

FORMAT = ToolCallFormat(
    "mine", "My model", JsonCalls(("<mine>",), ("</mine>",)), "<mine>{}</mine>", "here",
    signatures=(("<mine>",),),
)
OTHER = "no format"
"""


def install_plugin(folder: Path, name: str) -> None:
    (folder / "my_tool_format.py").write_text(PLUGIN, encoding="utf-8")
    metadata = folder / "my_tool_format-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: my_tool_format\nVersion: 1.0\n", encoding="utf-8")
    entry = f"[llmctl.tool_call_formats]\nmine = my_tool_format:{name}\n"
    (metadata / "entry_points.txt").write_text(entry, encoding="utf-8")


def test_a_package_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_plugin(tmp_path, "FORMAT")
    monkeypatch.syspath_prepend(tmp_path)
    source = TEMPLATES["hermes"].replace("tool_call>", "mine>")
    tokenizer = byte_tokenizer(source)
    parsers = ResponseParserFactory(tokenizer, ChatTemplate.of(tokenizer))
    assert parsers.calls is not None
    assert parsers.calls.name == "mine"
    parser = parsers.format(GenerationRequest(ASKED, tools=TOOLS), "").new_parser()
    assert parser is not None
    text, _, (call,) = joined(parser.feed('I ask.<mine>{"name": "add", "arguments": {}}</mine>'))
    assert (text, call.name) == ("I ask.", "add")


@pytest.mark.parametrize(("name", "reason"), [("OTHER", "is not a"), ("NONE", "be loaded")])
def test_a_package_without_a_format_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    install_plugin(tmp_path, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"my_tool_format:{name}.*{reason}"):
        tool_call_formats()


def test_a_format_may_be_forced_or_turned_off() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["hermes"])
    template = ChatTemplate.of(tokenizer)
    forced = ResponseParserFactory(tokenizer, template, tool_call_parser="glm47")
    assert forced.calls is FORMATS["glm45"]
    off = ResponseParserFactory(tokenizer, template, tool_call_parser="none")
    request = GenerationRequest(ASKED, tools=TOOLS)
    assert off.format(request, "").new_parser() is None
    with pytest.raises(ConfigError, match="unknown tool-call parser 'qwen9'") as caught:
        ResponseParserFactory(tokenizer, template, tool_call_parser="qwen9")
    assert "hermes" in caught.value.hint
    with pytest.raises(ConfigError, match="unknown reasoning parser"):
        ResponseParserFactory(tokenizer, template, reasoning_parser="qwen9")


@pytest.mark.parametrize("known", REASONING_FORMATS, ids=lambda known: known.name)
@pytest.mark.parametrize("opened", [False, True])
def test_reasoning_is_separated_however_it_is_cut(known: ReasoningFormat, opened: bool) -> None:
    if known.channels is not None:
        opened = False
    answer = {
        "gpt_oss": "<|start|>assistant<|channel|>final<|message|>Yes.",
        "muse": "<|start|>assistant to=user<|message|>Yes.",
    }.get(known.name, f"{known.frames[0] if known.frames else ''}Yes.")
    text = f"{'' if opened else known.open}Well.\n\nSo.\n{known.close}{answer}"
    reader = response_reader(None, known, offered=False, opened=opened)
    assert reader is not None
    for pieces in cuts(text):
        parser = FormatParser(reader)
        deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.end()
        assert joined(deltas) == ("Yes.", "Well.\n\nSo.", [])


def test_names_and_aliases_are_unique() -> None:
    for formats in (TOOL_CALL_FORMATS, REASONING_FORMATS):
        names = [name for known in formats for name in (known.name, *known.aliases)]
        assert len(names) == len(set(names))
    assert named_format("xlam", TOOL_CALL_FORMATS, "format") is GENERIC


def test_the_documentation_has_the_tables_of_the_registry() -> None:
    text = tool_formats.DOCUMENT.read_text(encoding="utf-8")
    hint = "run `python -m tests.compat.tool_formats --write`"
    assert "\n".join(tool_formats.table_lines()) in text, hint
    assert "\n".join(tool_formats.reasoning_lines()) in text, hint


def test_a_number_as_text_stays_text_where_the_schema_wants_a_string() -> None:
    written = "<tool_call>\n<function=add>\n<parameter=a>\n12\n</parameter>\n<parameter=b>\n12"
    written += "\n</parameter>\n<parameter=c>\n12\n</parameter>\n</function>\n</tool_call>"
    _, _, (call,) = read(FORMATS["qwen3_coder"], [written])
    assert json.loads(call.arguments) == {"a": 12, "b": "12", "c": 12}


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", "[" * 5000, "{1: f()}", "a" * 9999])
def test_a_value_that_is_not_json_is_a_string(value: str) -> None:
    written = f"<tool_call>add<arg_key>a</arg_key><arg_value>{value}</arg_value></tool_call>"
    _, _, (call,) = read(FORMATS["glm45"], [written])
    assert json.loads(call.arguments) == {"a": value}


def test_an_answer_in_json_is_streamed_where_calls_have_no_mark() -> None:
    for name in ("json", "llama3_json"):
        reader = response_reader(FORMATS[name], None, offered=True, opened=False)
        assert reader is not None
        parser = FormatParser(reader, TOOLS)
        text = '{"answer": 42, "because": "it is"'
        shown = "".join(delta.text for char in text for delta in parser.feed(char))
        assert shown == text


def test_the_name_is_known_before_the_arguments_and_these_come_in_pieces() -> None:
    for known in (FORMATS["hermes"], FORMATS["qwen3_coder"], FORMATS["kimi_k2"]):
        reader = response_reader(known, None, offered=True, opened=False)
        assert reader is not None
        parser = FormatParser(reader, TOOLS)
        deltas = [delta for char in known.example for delta in parser.feed(char)]
        calls = [delta.call for delta in deltas if delta.call is not None]
        assert calls[0].name == "add"
        assert len(calls) > 5
        assert len({call.id for call in calls}) == 1
