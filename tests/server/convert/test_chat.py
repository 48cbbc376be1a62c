"""Conversion of chat completion requests into generation requests."""

import json
from typing import Any

import pytest

from llmctl.server.convert.chat import chat_generation_request
from llmctl.server.schemas.base import IgnoredFields
from llmctl.server.schemas.chat import ChatCompletionRequest
from llmctl.types import GenerationRequest, Grammar, Message, SamplingParams
from tests.server.servers import chat_body


def converted(**fields: Any) -> GenerationRequest:
    return chat_generation_request(ChatCompletionRequest.model_validate(chat_body(**fields)))


def test_absent_fields_are_none() -> None:
    assert converted().sampling == SamplingParams()


@pytest.mark.parametrize(
    ("field", "value", "name", "expected"),
    [
        ("temperature", 0, "temperature", 0.0),
        ("seed", 0, "seed", 0),
        ("seed", -1, "seed", -1),
        ("stop", [], "stop", ()),
        ("stop", "END", "stop", ("END",)),
        ("stop", ["a", "b", "c", "d"], "stop", ("a", "b", "c", "d")),
        ("top_k", 0, "top_k", 0),
        ("min_p", 0, "min_p", 0.0),
        ("presence_penalty", 0, "presence_penalty", 0.0),
        ("frequency_penalty", -2, "frequency_penalty", -2.0),
        ("repetition_penalty", 1.1, "repetition_penalty", 1.1),
        ("logit_bias", {}, "logit_bias", ()),
        ("logit_bias", {"0": -100, "50256": 1.5}, "logit_bias", ((0, -100.0), (50256, 1.5))),
        ("stop_token_ids", [0, 2], "stop_token_ids", (0, 2)),
        ("ignore_eos", False, "ignore_eos", False),
        ("max_tokens", 5, "max_new_tokens", 5),
        ("min_tokens", 0, "min_new_tokens", 0),
        ("response_format", {"type": "json_object"}, "grammar", Grammar("json_object")),
        ("regex", "", "grammar", Grammar("regex", "")),
        ("regex", r"\d+", "grammar", Grammar("regex", r"\d+")),
        ("choice", ["yes", "no"], "grammar", Grammar("choice", choices=("yes", "no"))),
        ("n", 2, "n", 2),
        ("logprobs", False, "logprobs", None),
        ("logprobs", True, "logprobs", 0),
    ],
)
def test_values_are_converted_unchanged(field: str, value: Any, name: str, expected: Any) -> None:
    assert getattr(converted(**{field: value}).sampling, name) == expected


def test_max_completion_tokens_supersedes_max_tokens() -> None:
    assert converted(max_tokens=5, max_completion_tokens=9).sampling.max_new_tokens == 9


def test_top_logprobs_sets_the_number_of_alternatives() -> None:
    assert converted(logprobs=True, top_logprobs=3).sampling.logprobs == 3


@pytest.mark.parametrize("extra", [{}, {"strict": True}, {"strict": None, "description": "d"}])
def test_a_json_schema_keeps_its_order_of_keys(extra: dict[str, Any]) -> None:
    # The engine generates properties in the order of the schema.
    schema = {"type": "object", "properties": {"z": {"const": "你好"}, "a": {"minimum": 0.5}}}
    wire = {"type": "json_schema", "json_schema": {"name": "a-1_B", "schema": schema, **extra}}
    grammar = converted(response_format=wire).sampling.grammar
    assert grammar is not None
    assert grammar.kind == "json_schema"
    assert json.dumps(json.loads(grammar.source)) == json.dumps(schema)


@pytest.mark.parametrize(("strict", "is_open"), [(None, False), (True, False), (False, True)])
def test_only_an_explicit_strict_false_leaves_objects_open(
    strict: bool | None, is_open: bool
) -> None:
    schema = {"name": "a", "schema": {"type": "object"}, "strict": strict}
    wire = {"type": "json_schema", "json_schema": schema}
    grammar = converted(response_format=wire).sampling.grammar
    assert grammar is not None
    assert grammar.open_objects is is_open


def test_a_text_format_can_be_combined_with_a_regex() -> None:
    sampling = converted(response_format={"type": "text"}, regex="a").sampling
    assert sampling.grammar == Grammar("regex", "a")


def test_messages_keep_role_and_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    request = converted(
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": "d"},
            {"role": "user", "content": parts, "name": "Ann"},
            {"role": "assistant"},
            {"role": "tool", "content": "t", "tool_call_id": "1"},
        ]
    )
    assert request.messages == (
        Message("system", "s"),
        Message("developer", "d"),
        Message("user", "a b", name="Ann"),
        Message("assistant", ""),
        Message("tool", "t", tool_call_id="1"),
    )


def test_fields_without_effect_do_not_change_sampling() -> None:
    no_ops = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
    }
    assert IgnoredFields.model_fields.keys() <= no_ops.keys()
    assert converted(**no_ops).sampling == SamplingParams()
