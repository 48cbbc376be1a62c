"""Tests of the response parsers, the schema of required tool calls, and tools as text."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.engine.batching.sampling.grammar import GrammarCompiler
from llmctl.engine.chat.formats.families import TOOL_CALL_FORMATS
from llmctl.engine.chat.formats.format_parser import FormatParser, response_reader
from llmctl.engine.chat.formats.reasoning_families import THINK
from llmctl.engine.chat.formats.registry import named_format
from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.chat.response_parser import ResponseParserFactory
from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.engine.chat.tool_choice import RequiredToolCallParser, tool_call_schema
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.stream import ResultAccumulator
from llmctl.errors import RequestError
from llmctl.types import (
    GenerationChunk,
    GenerationRequest,
    Grammar,
    Message,
    ModelSpec,
    SamplingParams,
    Tool,
    ToolCall,
    Usage,
)
from tests.tiny import CHATML, byte_tokenizer, save_tiny_model
from tests.tool_templates import TEMPLATES

WITH_CALLS = CHATML + (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
    "{% endfor %}{% endfor %}"
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>'
ADD = Tool("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}})


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


def hermes_parser(*, opened: bool = False) -> FormatParser:
    hermes = named_format("hermes", TOOL_CALL_FORMATS, "format")
    read = response_reader(hermes, THINK, offered=True, opened=opened)
    assert read is not None
    return FormatParser(read, [ADD])


def joined_calls(deltas: Sequence[ResponseDelta]) -> list[tuple[str, str]]:
    """Return name and arguments of each call."""
    calls: dict[str, tuple[str, str]] = {}
    for delta in deltas:
        if delta.call is not None:
            _, arguments = calls.get(delta.call.id, ("", ""))
            calls[delta.call.id] = delta.call.name, arguments + delta.call.arguments
    return list(calls.values())


def parse(text: str, cuts: Sequence[int] = (), prefix: str = "") -> tuple[str, str, list[Any]]:
    """Return answer, reasoning and calls of a response that arrives in pieces."""
    parser = hermes_parser(opened=bool(prefix))
    deltas = [delta for piece in pieces(text, cuts) for delta in parser.feed(piece)]
    deltas += parser.end()
    calls = [(name, json.loads(arguments)) for name, arguments in joined_calls(deltas)]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


cuts = st.lists(st.integers(0, 160), max_size=12)


@given(cuts)
def test_the_deltas_do_not_depend_on_how_the_text_is_split(cuts: list[int]) -> None:
    text = f"<think>\nHm, a sum.\n\nYes.\n</think>\n\nI add.\n\n{CALL}\n{CALL}"
    call = ("add", {"a": 1, "b": "ü"})
    assert parse(text, cuts) == ("I add.", "Hm, a sum.\n\nYes.", [call, call])


@given(st.text(alphabet="ab <>/\n{}", max_size=40), cuts)
def test_text_without_markers_is_answer(text: str, cuts: list[int]) -> None:
    assert parse(text, cuts) == (text, "", [])


def test_reasoning_opened_by_the_prompt_is_reasoning() -> None:
    assert parse("So so.\n</think>\n\nYes.", prefix="<think>\n") == ("Yes.", "So so.", [])


def test_unclosed_reasoning_is_not_answer() -> None:
    assert parse("<think>\nendless") == ("", "endless", [])


@pytest.mark.parametrize("broken", ['{"name": "add", "argum', "[1, 2]", "add(1, 2)", '{"x": 1}'])
def test_an_invalid_call_is_answer_and_does_not_end_the_response(broken: str) -> None:
    answer, _, calls = parse(f"<tool_call>{broken}</tool_call> and so on")
    assert calls == []
    assert broken.rstrip() in answer or '"x": 1' in answer
    assert answer.endswith("and so on")


@pytest.mark.parametrize(
    "text",
    [
        "Qwen writes <think> first and </think> last.",
        "The mark <tool_call> opens a call, </tool_call> closes it.",
        'In code:\n```xml\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n```\nDone.',
        '`<tool_call>{"name": "add"}</tool_call>` is a call.',
    ],
)
@given(cuts=cuts)
def test_an_answer_may_speak_of_the_marks(text: str, cuts: list[int]) -> None:
    assert parse(text, cuts) == (text, "", [])
    assert parse(f"<think>\nWell.\n</think>\n\n{text}", cuts) == (text, "Well.", [])


@given(cuts)
def test_arguments_may_hold_the_closing_mark(cuts: list[int]) -> None:
    text = 'So:\n<tool_call>{"name": "add", "arguments": {"a": "</tool_call>"}}</tool_call>'
    assert parse(text, cuts) == ("So:", "", [("add", {"a": "</tool_call>"})])


def test_parameters_are_arguments_too() -> None:
    call = '<tool_call>{"name": "add", "parameters": {"a": 1}}</tool_call>'
    assert parse(call) == ("", "", [("add", {"a": 1})])


def test_a_call_cut_off_in_its_arguments_keeps_them() -> None:
    parser = hermes_parser()
    deltas = parser.feed('<tool_call>\n{"name": "add", "arguments": {"a": 1')
    assert joined_calls(deltas + parser.end()) == [("add", '{"a": 1')]


def parser_for(source: str, request: GenerationRequest, prompt: str = "") -> Any:
    tokenizer = byte_tokenizer()
    factory = ResponseParserFactory(tokenizer, ChatTemplate(tokenizer, source))
    return factory.format(request, prompt).new_parser()


def test_calls_are_read_only_where_tools_were_given() -> None:
    asked = (Message("user", "?"),)
    marked = CHATML + "{# <tool_call> #}"
    assert parser_for(CHATML, GenerationRequest(asked)) is None
    assert parser_for(marked, GenerationRequest(asked)) is None
    parser = parser_for(marked, GenerationRequest(asked, tools=(ADD,)))
    assert [delta.call.name for delta in parser.feed(CALL)] == ["add"]


def parse_required(text: str, cuts: list[int]) -> list[tuple[str, str]]:
    parser = RequiredToolCallParser()
    accumulator = ResultAccumulator()
    for piece in pieces(text, cuts):
        calls = tuple(delta.call for delta in parser.feed(piece) if delta.call is not None)
        accumulator.add(GenerationChunk("", tool_calls=calls))
    assert parser.end() == []
    accumulator.add(GenerationChunk("", finish_reason="stop", usage=Usage(0, 0)))
    (choice,) = accumulator.result().choices
    return [(call.name, call.arguments) for call in choice.tool_calls]


@given(cuts)
def test_required_calls_do_not_depend_on_how_the_text_is_split(cuts: list[int]) -> None:
    text = '[{"name": "a", "arguments": {"x": "}]\\""}}, {"name":"b","arguments":{}}]'
    assert parse_required(text, cuts) == [("a", '{"x": "}]\\""}'), ("b", "{}")]


@given(cuts)
def test_arguments_of_every_json_type_end_correctly(cuts: list[int]) -> None:
    text = '[{"name": "a", "arguments": 12.5e3 }, {"name":"b","arguments":null},'
    text += '{"name":"c","arguments":"\\\\\\""}, {"name":"d","arguments":[[],{}]}]'
    assert parse_required(text, cuts) == [
        ("a", "12.5e3"),
        ("b", "null"),
        ("c", '"\\\\\\""'),
        ("d", "[[],{}]"),
    ]


def test_arguments_are_returned_in_pieces() -> None:
    parser = RequiredToolCallParser()
    fed = [
        parser.feed(piece) for piece in ('{"name": "a", "arguments": {"x', '": "lon', 'g"}', "}")
    ]
    calls = [delta.call for deltas in fed for delta in deltas if delta.call is not None]
    assert [call.arguments for call in calls] == ['{"x', '": "lon', 'g"}']
    assert len({call.id for call in calls}) == 1


def test_a_truncated_call_keeps_its_incomplete_arguments() -> None:
    assert parse_required('{"name": "a", "arguments": {"x": "lon', [3]) == [("a", '{"x": "lon')]
    assert parse_required('{"name": "a", "argu', []) == []


def test_definitions_of_two_tools_do_not_mix() -> None:
    def tool(name: str, kind: str) -> Tool:
        inner = {"$defs": {"In": {"type": kind}}, "properties": {"v": {"$ref": "#/$defs/In"}}}
        return Tool(name, "", {"type": "object", "required": ["v"], **inner})

    schema = tool_call_schema([tool("a", "integer"), tool("b", "string")], parallel=True)
    good = [{"name": "a", "arguments": {"v": 1}}, {"name": "b", "arguments": {"v": "x"}}]
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"name": "a", "arguments": {"v": "x"}}], schema)


TREE: dict[str, object] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.org/tree",
    "type": "object",
    "properties": {
        "colour": {"$ref": "#/definitions/colour"},
        "other": {"$ref": "#/properties/colour"},
        "child": {"$ref": "#"},
        "default": {"$ref": "#/definitions/colour"},
        "as written": {"const": {"$ref": "#/x"}},
    },
    "definitions": {"colour": {"enum": ["red"]}},
}


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({"colour": "red", "child": {"other": "red", "child": {}}}, True),
        ({"as written": {"$ref": "#/x"}, "default": "red"}, True),
        ({"child": {"other": "blue"}}, False),
        ({"default": "blue"}, False),
        ({"child": {"unknown": 1}}, False),
    ],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_references_in_a_tool_schema_resolve_to_its_own_root(
    arguments: dict[str, object], valid: bool, parallel: bool
) -> None:
    schema = tool_call_schema([ADD, Tool("paint", "", TREE)], parallel=parallel)
    call = {"name": "paint", "arguments": arguments}
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid([call] if parallel else call) is valid


def nested(levels: int) -> dict[str, object]:
    inner: dict[str, object] = {}
    for _ in range(levels):
        inner = {"items": inner}
    return inner


@pytest.mark.parametrize("source", [CHATML, CHATML + "{# <|im_start|> {{ tools }} #}"])
@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"$defs": [1]}, "'f' have '.defs' that is not an object"),
        ({"definitions": "x"}, "'f' have 'definitions' that is not an object"),
        (nested(900), "nested too deeply"),
        (
            {"properties": {"a": {"not": {"type": "null"}}}},
            "cannot enforce these tools: 'not' at #/.defs/tool0/properties/a ",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "does not exist"),
    ],
    ids=["defs", "definitions", "deep", "not", "ref"],
)
def test_a_tool_schema_that_no_grammar_can_enforce_is_rejected(
    parameters: dict[str, object], reason: str, source: str
) -> None:
    tokenizer = byte_tokenizer()
    template = ChatTemplate(tokenizer, source)
    parsers = ResponseParserFactory(tokenizer, template)
    tools = (Tool("f", "", parameters),)
    request = GenerationRequest((Message("user", "?"),), tools=tools, required_tools=("f",))

    def check() -> None:
        options = RenderOptions(tools=tools if template.supports_tools else ())
        template.render(parsers.messages(request), options)
        grammar = parsers.grammar(request)
        assert grammar is not None
        GrammarCompiler(tokenizer, len(tokenizer), [257]).compile(grammar)

    with pytest.raises(RequestError, match=reason) as caught:
        check()
    assert caught.value.param == "tools"


def test_a_call_with_deeply_nested_arguments_is_rejected() -> None:
    template = ChatTemplate(byte_tokenizer(), WITH_CALLS)
    for levels in (900, 100_000):
        call = ToolCall("f", '{"a":' * levels + "1" + "}" * levels)
        with pytest.raises(RequestError) as caught:
            template.render([Message("user", "?"), Message("assistant", "", tool_calls=(call,))])
        assert caught.value.param == "messages"


TOOLS_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML


@pytest.fixture(scope="module", params=[CHATML, TOOLS_TEMPLATE])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HFRunner]:
    folder = tmp_path_factory.mktemp("models") / "model"
    save_tiny_model(folder, chat_template=request.param, max_position_embeddings=1024)
    with HFRunner(ModelSpec(str(folder), device="cpu")) as engine:
        engine.load()
        yield engine


@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_tool_is_called_with_valid_arguments(engine: HFRunner, parallel: bool) -> None:
    enum = {"type": "string", "enum": ["red", "blue"]}
    paint = Tool("paint", "", {"type": "object", "properties": {"c": enum}, "required": ["c"]})
    request = GenerationRequest(
        (Message("user", "?"),),
        tools=(ADD, paint),
        required_tools=("paint",),
        parallel_tool_calls=parallel,
        sampling=SamplingParams(seed=1, temperature=1.0),
    )
    (choice,) = engine.generate(request).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.text == ""
    assert {call.name for call in choice.tool_calls} == {"paint"}
    assert all(json.loads(c.arguments)["c"] in ("red", "blue") for c in choice.tool_calls)
    assert len({call.id for call in choice.tool_calls}) == len(choice.tool_calls)
    if not parallel:
        assert len(choice.tool_calls) == 1


@pytest.mark.parametrize("keyword", ["type", "not"])
def test_a_strict_tool_may_be_left_out_and_its_schema_never_refuses_the_request(
    engine: HFRunner, keyword: str, caplog: pytest.LogCaptureFixture
) -> None:
    part: dict[str, object] = (
        {"type": "integer"} if keyword == "type" else {"not": {"type": "null"}}
    )
    tool = Tool("paint", "", {"type": "object", "properties": {"c": part}}, strict=True)
    request = GenerationRequest(
        (Message("user", "?"),),
        tools=(tool,),
        sampling=SamplingParams(seed=1, temperature=1.0, max_new_tokens=12, ignore_eos=True),
    )
    (choice,) = engine.generate(request).choices
    assert choice.text
    assert ("not enforced" in caplog.text) == (keyword == "not")


def test_without_tools_in_the_template_they_are_told_in_words_and_calls_are_read() -> None:
    tokenizer = byte_tokenizer()
    template = ChatTemplate(tokenizer, CHATML)
    factory = ResponseParserFactory(tokenizer, template)
    assert factory.tells_tools_in_words
    request = GenerationRequest((Message("system", "Short."), Message("user", "?")), tools=(ADD,))
    prompt = template.render(factory.messages(request)).text
    assert "add: adds" in prompt
    assert '"a": {"type": "integer"}' in prompt
    assert "Short." in prompt
    for written in (CALL, '{"name": "add", "arguments": {"a": 1, "b": "ü"}}'):
        parser = factory.format(request, prompt).new_parser()
        assert parser is not None
        calls = joined_calls(parser.feed(written) + parser.end())
        assert [(n, json.loads(a)) for n, a in calls] == [("add", {"a": 1, "b": "ü"})]


TOOL_CONVERSATION = (
    Message("user", "Weather?"),
    Message(
        "assistant",
        "",
        tool_calls=(
            ToolCall("weather", '{"city":"Genève"}', "1"),
            ToolCall("weather", '{"city":"Rome"}', "2"),
        ),
    ),
    Message("tool", "22C", tool_call_id="1"),
    Message("tool", "30C", tool_call_id="2"),
    Message("assistant", "Warm."),
)


def test_without_tool_calls_in_the_template_they_are_plain_messages() -> None:
    tokenizer = byte_tokenizer()
    template = ChatTemplate(tokenizer, CHATML)
    messages = ResponseParserFactory(tokenizer, template).messages(
        GenerationRequest(TOOL_CONVERSATION)
    )
    assert template.render(messages).text == (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Genève"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nResult of weather: 22C\nResult of weather: 30C<|im_end|>\n"
        "<|im_start|>assistant\nWarm.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_with_tool_calls_in_the_template_messages_are_unchanged() -> None:
    template = ChatTemplate(byte_tokenizer(), WITH_CALLS)
    messages = ResponseParserFactory(byte_tokenizer(), template).messages(
        GenerationRequest(TOOL_CONVERSATION)
    )
    assert messages == TOOL_CONVERSATION


def test_parsed_chunks_join_to_the_raw_text(tmp_path: Path) -> None:
    # A random model writes no markers, so the parser must not change its text.
    source = CHATML + "{# <think> <tool_call> #}"
    folder = save_tiny_model(tmp_path / "model", chat_template=source)
    sampling = SamplingParams(temperature=0, max_new_tokens=40, ignore_eos=True, logprobs=0)
    request = GenerationRequest((Message("user", "hi"),), sampling=sampling)
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        with engine.submit(request) as stream:
            chunks: list[GenerationChunk] = list(stream)
        ids = engine._ready.template.render(request.messages).ids
        raw = engine.generate(GenerationRequest(prompt=tuple(ids), sampling=sampling))
    assert "".join(chunk.text for chunk in chunks) == raw.choices[0].text
    tokens = [entry.chosen.token_id for chunk in chunks for entry in chunk.logprobs]
    assert tokens == [entry.chosen.token_id for entry in raw.choices[0].logprobs]


@pytest.mark.parametrize(
    ("prompt", "kwargs", "expected"),
    [
        ("<|im_start|>assistant\n", {}, False),
        ("<|im_start|>assistant\n<think>\n", {}, True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", {}, None),
        ("<|im_start|>assistant\n", {"enable_thinking": False}, None),
    ],
)
def test_a_restricted_response_may_be_preceded_by_reasoning(
    prompt: str, kwargs: dict[str, object], expected: bool | None
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    factory = ResponseParserFactory(tokenizer, ChatTemplate(tokenizer, CHATML + "{# <think> #}"))
    request = GenerationRequest(
        (Message("user", "?"),),
        template_kwargs=kwargs,
        sampling=SamplingParams(grammar=Grammar("choice", choices=("yes", "no"))),
    )
    reasoning = factory.format(request, prompt).reasoning
    assert (None if reasoning is None else reasoning.opened) == expected


def test_a_model_thinks_before_a_grammar_restricts_it(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML + "{# <think> #}")
    tokenizer.add_tokens(["<think>", "</think>"])
    folder = save_tiny_model(tmp_path / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    opening, closing = (tokenizer.get_vocab()[mark] for mark in ("<think>", "</think>"))
    grammar = Grammar("choice", choices=("yes", "no"))
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32")) as engine:
        engine.load()

        def answer(*bias: tuple[int, float]) -> tuple[str, list[int]]:
            params = SamplingParams(
                temperature=0, max_new_tokens=60, grammar=grammar, logit_bias=bias, logprobs=0
            )
            request = GenerationRequest((Message("user", "?"),), sampling=params)
            (choice,) = engine.generate(request).choices
            return choice.text, [entry.chosen.token_id for entry in choice.logprobs]

        text, ids = answer((opening, -100.0))
        assert text in ("yes", "no")
        assert opening not in ids
        text, ids = answer((opening, 50.0), (closing, 99.0))
        assert text in ("yes", "no")
        assert ids[:2] == [opening, closing]


def test_reasoning_before_a_grammar_ends_at_half_of_the_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML + "{# <think> #}")
    tokenizer.add_tokens(["<think>", "</think>"])
    folder = save_tiny_model(tmp_path / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    opening, closing = (tokenizer.get_vocab()[mark] for mark in ("<think>", "</think>"))
    params = SamplingParams(
        temperature=0,
        max_new_tokens=20,
        grammar=Grammar("choice", choices=("yes", "no")),
        logit_bias=((opening, 50.0), (closing, -100.0)),
        logprobs=0,
    )
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        request = GenerationRequest((Message("user", "?"),), sampling=params)
        (choice,) = engine.generate(request).choices
    ids = [entry.chosen.token_id for entry in choice.logprobs]
    assert ids.index(closing) == 1 + 10
    assert choice.text in ("yes", "no")
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("required", [False, True])
def test_a_grammar_begins_after_the_header_of_a_message(tmp_path: Path, required: bool) -> None:
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"]
    tokenizer = byte_tokenizer(TEMPLATES["gpt_oss"] + "{# <|channel|>analysis<|message|> #}")
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    folder = save_tiny_model(
        tmp_path / "model", vocab_size=len(tokenizer), max_position_embeddings=1024
    )
    tokenizer.save_pretrained(folder)
    grammar = None if required else Grammar("choice", choices=("yes", "no"))
    params = SamplingParams(seed=3, temperature=1.0, max_new_tokens=200, grammar=grammar)
    choice = {"type": "string", "enum": ["red", "blue"]}
    paint = Tool("paint", "", {"properties": {"c": choice}, "required": ["c"]})
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        request = GenerationRequest(
            (Message("user", "?"),),
            tools=(paint,),
            required_tools=("paint",) if required else (),
            parallel_tool_calls=False,
            sampling=params,
        )
        (answer,) = engine.generate(request).choices
    if required:
        (call,) = answer.tool_calls
        assert json.loads(call.arguments)["c"] in ("red", "blue")
        assert answer.text == ""
    else:
        assert answer.text.endswith(("yes", "no"))
