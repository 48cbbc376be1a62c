"""Answer, reasoning and calls are told apart, however the text comes in pieces."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.engine.batching.sampling.grammar import GrammarCompiler
from llmctl.engine.chat.response_parser import (
    ResponseParserFactory,
    TemplateResponseParser,
    response_template,
)
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.chat.tool_choice import RequiredToolCallParser, tool_call_schema
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.stream import ResultAccumulator
from llmctl.errors import RequestError, UnsupportedError
from llmctl.types import (
    GenerationChunk,
    GenerationRequest,
    Message,
    ModelSpec,
    SamplingParams,
    Tool,
    ToolCall,
    Usage,
)
from tests.tiny import CHATML, byte_tokenizer, save_tiny_model

QWEN_LIKE = response_template(None, "... <think> ... <tool_call> ...")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>'
ADD = Tool("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}})


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


def read(text: str, cuts: Sequence[int] = (), begun: str = "") -> tuple[str, str, list[Any]]:
    """Return answer, reasoning and calls of a reply that comes in pieces."""
    reader = TemplateResponseParser(QWEN_LIKE, [], begun)
    parts = [part for piece in pieces(text, cuts) for part in reader.feed(piece)]
    parts += reader.end()
    calls = [(p.call.name, json.loads(p.call.arguments)) for p in parts if p.call is not None]
    return "".join(p.text for p in parts), "".join(p.reasoning for p in parts), calls


cuts = st.lists(st.integers(0, 160), max_size=12)


@given(cuts)
def test_the_parts_are_the_same_however_the_reply_is_cut(cuts: list[int]) -> None:
    text = f"<think>\nHm, a sum.\n\nYes.\n</think>\n\nI add.\n\n{CALL}\n{CALL}"
    call = ("add", {"a": 1, "b": "ü"})
    assert read(text, cuts) == ("I add.", "Hm, a sum.\n\nYes.", [call, call])


@given(st.text(alphabet="ab <>/\n{}", max_size=40), cuts)
def test_text_without_marks_is_all_answer(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == (text, "", [])


def test_reasoning_that_the_prompt_has_opened_is_reasoning() -> None:
    assert read("So so.\n</think>\n\nYes.", begun="<think>\n") == ("Yes.", "So so.", [])


def test_reasoning_that_never_ends_is_no_answer() -> None:
    assert read("<think>\nendless") == ("", "endless", [])


@pytest.mark.parametrize("broken", ['{"name": "add", "argum', "[1, 2]", "add(1, 2)", '{"x": 1}'])
def test_a_call_that_is_none_is_shown_and_ends_nothing(broken: str) -> None:
    answer, _, calls = read(f"<tool_call>{broken}</tool_call> and so on")
    assert calls == []
    assert broken.rstrip() in answer or '"x": 1' in answer
    assert answer.endswith("and so on")


def test_a_model_without_marks_needs_no_reader() -> None:
    assert response_template(None, CHATML) is None
    assert response_template(None, None) is None


def forced(text: str, cuts: list[int]) -> list[tuple[str, str]]:
    reader = RequiredToolCallParser()
    folded = ResultAccumulator()
    for piece in pieces(text, cuts):
        calls = tuple(part.call for part in reader.feed(piece) if part.call is not None)
        folded.add(GenerationChunk("", tool_calls=calls))
    assert reader.end() == []
    folded.add(GenerationChunk("", finish_reason="stop", usage=Usage(0, 0)))
    (choice,) = folded.result().choices
    return [(call.name, call.arguments) for call in choice.tool_calls]


@given(cuts)
def test_forced_calls_are_read_however_they_are_cut(cuts: list[int]) -> None:
    text = '[{"name": "a", "arguments": {"x": "}]\\""}}, {"name":"b","arguments":{}}]'
    assert forced(text, cuts) == [("a", '{"x": "}]\\""}'), ("b", "{}")]


@given(cuts)
def test_arguments_that_are_no_object_end_where_they_end(cuts: list[int]) -> None:
    text = '[{"name": "a", "arguments": 12.5e3 }, {"name":"b","arguments":null},'
    text += '{"name":"c","arguments":"\\\\\\""}, {"name":"d","arguments":[[],{}]}]'
    assert forced(text, cuts) == [
        ("a", "12.5e3"),
        ("b", "null"),
        ("c", '"\\\\\\""'),
        ("d", "[[],{}]"),
    ]


def test_arguments_are_told_while_they_are_written() -> None:
    reader = RequiredToolCallParser()
    told = [
        reader.feed(piece) for piece in ('{"name": "a", "arguments": {"x', '": "lon', 'g"}', "}")
    ]
    calls = [part.call for parts in told for part in parts if part.call is not None]
    assert [call.arguments for call in calls] == ['{"x', '": "lon', 'g"}']
    assert len({call.id for call in calls}) == 1


def test_a_forced_call_that_was_cut_off_shows_how_far_it_came() -> None:
    assert forced('{"name": "a", "arguments": {"x": "lon', [3]) == [("a", '{"x": "lon')]
    assert forced('{"name": "a", "argu', []) == []


def test_definitions_of_each_tool_stay_its_own() -> None:
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
    ("arguments", "right"),
    [
        ({"colour": "red", "child": {"other": "red", "child": {}}}, True),
        ({"as written": {"$ref": "#/x"}, "default": "red"}, True),
        ({"child": {"other": "blue"}}, False),
        ({"default": "blue"}, False),
        ({"child": {"unknown": 1}}, False),
    ],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_references_in_a_tools_schema_are_to_its_own_root(
    arguments: dict[str, object], right: bool, parallel: bool
) -> None:
    schema = tool_call_schema([ADD, Tool("paint", "", TREE)], parallel=parallel)
    call = {"name": "paint", "arguments": arguments}
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid([call] if parallel else call) is right


def nested(levels: int) -> dict[str, object]:
    inner: dict[str, object] = {}
    for _ in range(levels):
        inner = {"items": inner}
    return inner


@pytest.mark.parametrize("source", [CHATML, CHATML + "{# <|im_start|> {{ tools }} #}"])
@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"$defs": [1]}, "'f' have '.defs' that are no object"),
        ({"definitions": "x"}, "'f' have 'definitions' that are no object"),
        (nested(900), "nested too deeply"),
        ({"properties": {"a": {"not": {}}}}, 'cannot enforce these tools: Unimplemented.*"not"'),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "does not exist"),
    ],
    ids=["defs", "definitions", "deep", "not", "ref"],
)
def test_a_tool_that_cannot_be_enforced_is_refused_as_a_tool(
    parameters: dict[str, object], reason: str, source: str
) -> None:
    tokenizer = byte_tokenizer()
    template = ChatTemplate(tokenizer, source)
    readers = ResponseParserFactory(tokenizer, template)
    tools = (Tool("f", "", parameters),)
    request = GenerationRequest((Message("user", "?"),), tools=tools, required_tools=("f",))

    def check() -> None:
        template.encode(readers.messages(request), tools=tools if template.supports_tools else ())
        grammar = readers.grammar(request)
        assert grammar is not None
        GrammarCompiler(tokenizer, len(tokenizer), [257]).compile(grammar)

    with pytest.raises(RequestError, match=reason) as caught:
        check()
    assert caught.value.param == "tools"


def test_a_call_whose_arguments_are_nested_too_deeply_is_refused() -> None:
    template = ChatTemplate(byte_tokenizer(), CHATML + "{# tool_calls #}")
    for levels in (900, 100_000):
        call = ToolCall("f", '{"a":' * levels + "1" + "}" * levels)
        with pytest.raises(RequestError) as caught:
            template.render([Message("user", "?"), Message("assistant", "", tool_calls=(call,))])
        assert caught.value.param == "messages"


TOOLS_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML


@pytest.mark.parametrize("template", [CHATML, TOOLS_TEMPLATE])
@pytest.mark.parametrize("parallel", [True, False])
def test_any_model_calls_a_tool_that_it_must_call(
    template: str, parallel: bool, tmp_path: Path
) -> None:
    folder = save_tiny_model(
        tmp_path / "model", chat_template=template, max_position_embeddings=1024
    )
    enum = {"type": "string", "enum": ["red", "blue"]}
    paint = Tool("paint", "", {"type": "object", "properties": {"c": enum}, "required": ["c"]})
    request = GenerationRequest(
        (Message("user", "?"),),
        tools=(ADD, paint),
        required_tools=("paint",),
        parallel_tool_calls=parallel,
        sampling=SamplingParams(seed=1, temperature=1.0),
    )
    with HFRunner(ModelSpec(str(folder), device="cpu")) as engine:
        engine.load()
        (choice,) = engine.generate(request).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.text == ""
        assert {call.name for call in choice.tool_calls} == {"paint"}
        assert all(json.loads(c.arguments)["c"] in ("red", "blue") for c in choice.tool_calls)
        assert len({call.id for call in choice.tool_calls}) == len(choice.tool_calls)
        if not parallel:
            assert len(choice.tool_calls) == 1


def test_a_model_that_knows_no_tools_is_not_left_to_choose_one(tiny: HFRunner) -> None:
    request = GenerationRequest((Message("user", "?"),), tools=(ADD,))
    with pytest.raises(UnsupportedError, match="has no tools") as caught:
        tiny.submit(request)
    assert caught.value.param == "tools"
    assert "required" in caught.value.hint


TALKED = (
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


def test_calls_and_results_that_the_template_has_no_place_for_are_told_in_words() -> None:
    tokenizer = byte_tokenizer()
    template = ChatTemplate(tokenizer, CHATML)
    told = ResponseParserFactory(tokenizer, template).messages(GenerationRequest(TALKED))
    assert template.render(told).text == (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n[{"name": "weather", "arguments": {"city": "Genève"}}, '
        '{"name": "weather", "arguments": {"city": "Rome"}}]<|im_end|>\n'
        "<|im_start|>user\nResult of weather: 22C\nResult of weather: 30C<|im_end|>\n"
        "<|im_start|>assistant\nWarm.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    weather = Tool("weather", "", {"properties": {"city": {"type": "string"}}})
    called = json.loads(told[1].content)
    jsonschema.validate(called, tool_call_schema([weather], parallel=True))


def test_a_template_that_shows_calls_gets_them_as_they_are() -> None:
    template = ChatTemplate(byte_tokenizer(), CHATML + "{# tool_calls #}")
    told = ResponseParserFactory(byte_tokenizer(), template).messages(GenerationRequest(TALKED))
    assert told == TALKED


def test_chunks_of_a_reply_join_to_its_parts(tmp_path: Path) -> None:
    """A random model says anything but marks; what it says must come through them unchanged."""
    source = CHATML + "{# <think> <tool_call> #}"
    folder = save_tiny_model(tmp_path / "model", chat_template=source)
    sampling = SamplingParams(temperature=0, max_new_tokens=40, ignore_eos=True, logprobs=0)
    request = GenerationRequest((Message("user", "hi"),), sampling=sampling)
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        with engine.submit(request) as stream:
            chunks: list[GenerationChunk] = list(stream)
        ids = engine._ready.template.encode(request.messages)
        raw = engine.generate(GenerationRequest(prompt=tuple(ids), sampling=sampling))
    assert "".join(chunk.text for chunk in chunks) == raw.choices[0].text
    tokens = [entry.chosen.token_id for chunk in chunks for entry in chunk.logprobs]
    assert tokens == [entry.chosen.token_id for entry in raw.choices[0].logprobs]
