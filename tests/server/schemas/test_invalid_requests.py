"""Status, code and param of the errors of invalid requests."""

import asyncio
from typing import Any

import httpx
import pydantic
import pytest

from llmctl.errors import RequestError
from llmctl.server.app import create_app
from llmctl.server.middleware.strict_json import object_from_pairs
from llmctl.server.schemas.base import StrictModel
from llmctl.server.schemas.chat import ChatCompletionRequest
from llmctl.server.schemas.completions import CompletionRequest, DetokenizeRequest
from llmctl.server.schemas.responses import ResponseRequest
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, SHARED_ENGINE, chat_body, error_body, send_request

USER = {"role": "user", "content": "hi"}
PART = {"type": "text", "text": "hi"}
ABSENT = object()
"""Marks a field that is left out."""


def messages(*entries: Any) -> dict[str, Any]:
    return {"messages": list(entries)}


def content(value: Any, role: str = "user") -> dict[str, Any]:
    return messages({"role": role, "content": value})


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def missing(param: str) -> tuple[str, str, str]:
    return "missing_required_parameter", param, "Missing required parameter"


def too_large(param: str) -> tuple[str, str, str]:
    return "object_above_max_length", param, "object too long"


SCHEMA = {"type": "object"}


CASES: list[tuple[dict[str, Any], str | None, str | None, str]] = [
    # fields, code, param, part of the message
    ({"model": ABSENT}, "missing_required_parameter", "model", "'model'"),
    ({"model": None}, "invalid_type", "model", "expected a string, but got null"),
    ({"messages": ABSENT}, "missing_required_parameter", "messages", "'messages'"),
    (messages(), "empty_array", "messages", "minimum length 1"),
    ({"messages": "hi"}, "invalid_type", "messages", "an array, but got a string"),
    (messages("hi"), "invalid_type", "messages[0]", "an object, but got a string"),
    (messages({"content": "x"}), "missing_required_parameter", "messages[0].role", ""),
    (content("x", role="alien"), "invalid_value", "messages[0].role", "'alien'. Supported values"),
    (messages(USER, {"role": "user"}), "missing_required_parameter", "messages[1].content", ""),
    (content(None), "invalid_type", "messages[0].content", "a string or an array, but got null"),
    (content(5), "invalid_type", "messages[0].content", "a string or an array"),
    (content([]), "empty_array", "messages[0].content", ""),
    (content(["x"]), "invalid_type", "messages[0].content[0]", "an object"),
    (content([{"type": "text"}]), "missing_required_parameter", "messages[0].content[0].text", ""),
    (
        content([{"type": "image_url", "image_url": {"url": "data:"}}]),
        "invalid_value",
        "messages[0].content[0].type",
        "'image_url'. Supported values are: 'text'",
    ),
    (
        content([{"type": "input_audio", "input_audio": {}}]),
        "invalid_value",
        "messages[0].content[0].type",
        "'input_audio'",
    ),
    (messages({**USER, "foo": 1}), "unknown_parameter", "messages[0].foo", "messages[0].foo"),
    (
        messages(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        "missing_required_parameter",
        "messages[1].tool_calls[0].function",
        "",
    ),
    (messages({"role": "tool", "content": "x"}), *missing("messages[0].tool_call_id")),
    ({"tools": []}, "empty_array", "tools", ""),
    ({"tools": [{"type": "function"}]}, *missing("tools[0].function")),
    (
        {"tools": [{"type": "retrieval", "function": {"name": "f"}}]},
        "invalid_value",
        "tools[0].type",
        "'retrieval'",
    ),
    ({"tools": [tool("no spaces")]}, "invalid_value", "tools[0].function.name", ""),
    ({"tools": [tool("f") | {"x": 1}]}, "unknown_parameter", "tools[0].x", ""),
    ({"tools": [tool("f")], "tool_choice": "any"}, "invalid_value", "tool_choice", "'any'"),
    ({"tools": [tool("f")], "tool_choice": 1}, "invalid_type", "tool_choice", "an object"),
    ({"tool_choice": "auto"}, "invalid_value", "tool_choice", "only allowed when 'tools'"),
    (
        {"tools": [tool("f")], "tool_choice": tool("g")},
        "invalid_value",
        "tool_choice",
        "the required tool 'g' is not among the tools",
    ),
    (
        {"tools": [tool("f")], "tool_choice": "required", "choice": ["a"]},
        "invalid_value",
        "tool_choice",
        "a grammar and",
    ),
    ({"continue_final_message": True}, "invalid_value", "messages", "assistant message"),
    ({"temperature": "0.5"}, "invalid_type", "temperature", "a decimal, but got a string instead"),
    ({"temperature": True}, "invalid_type", "temperature", "got a boolean"),
    (
        {"temperature": 200},
        "decimal_above_max_value",
        "temperature",
        "Expected a value <= 2, but got 200 instead.",
    ),
    ({"temperature": -0.5}, "decimal_below_min_value", "temperature", ">= 0, but got -0.5"),
    ({"temperature": 10**400}, "invalid_type", "temperature", ""),
    ({"top_p": 7}, "decimal_above_max_value", "top_p", ""),
    ({"presence_penalty": 2.5}, "decimal_above_max_value", "presence_penalty", ""),
    ({"frequency_penalty": -3}, "decimal_below_min_value", "frequency_penalty", ""),
    ({"n": 0}, "integer_below_min_value", "n", ""),
    ({"n": 129}, "integer_above_max_value", "n", "<= 128, but got 129"),
    ({"n": 1.0}, "invalid_type", "n", "an integer, but got a decimal"),
    ({"n": True}, "invalid_type", "n", "got a boolean"),
    ({"max_tokens": 0}, "integer_below_min_value", "max_tokens", ""),
    ({"max_completion_tokens": -3}, "integer_below_min_value", "max_completion_tokens", ""),
    ({"seed": "7"}, "invalid_type", "seed", ""),
    ({"seed": 2**63}, "integer_above_max_value", "seed", ""),
    ({"stop": list("abcde")}, "array_above_max_length", "stop", "length 4, but got an array with"),
    ({"stop": 5}, "invalid_type", "stop", "a string or an array, but got an integer"),
    ({"stop": ["a", 5]}, "invalid_type", "stop[1]", ""),
    ({"stop": ""}, "invalid_value", "stop", "empty"),
    ({"logit_bias": {"hello": 1}}, "invalid_value", "logit_bias.hello", ""),
    ({"logit_bias": {"9" * 5000: 1}}, "invalid_value", "logit_bias." + "9" * 189 + "\u2026", ""),
    ({"logit_bias": {"50": 101}}, "decimal_above_max_value", "logit_bias.50", ""),
    ({"logit_bias": [1]}, "invalid_type", "logit_bias", "an object, but got an array"),
    ({"logprobs": 3}, "invalid_type", "logprobs", "a boolean"),
    ({"logprobs": True, "top_logprobs": 21}, "integer_above_max_value", "top_logprobs", ""),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs", "only allowed when 'logprobs' is true"),
    ({"logprobs": False, "top_logprobs": 0}, "invalid_value", "top_logprobs", ""),
    ({"stream": "yes"}, "invalid_type", "stream", "a boolean"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options", "'stream'"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "unsupported_parameter",
        "stream_options.include_obfuscation",
        "",
    ),
    ({"top_k": -1}, "integer_below_min_value", "top_k", ""),
    ({"min_p": 1.5}, "decimal_above_max_value", "min_p", ""),
    ({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty", "0.01"),
    ({"stop_token_ids": [-1]}, "integer_below_min_value", "stop_token_ids[0]", ""),
    ({"ignore_eos": 1}, "invalid_type", "ignore_eos", ""),
    ({"min_tokens": -1}, "integer_below_min_value", "min_tokens", ""),
    ({"min_tokens": "5"}, "invalid_type", "min_tokens", ""),
    ({"response_format": "json"}, "invalid_type", "response_format", "an object, but got a string"),
    ({"response_format": {}}, "missing_required_parameter", "response_format.type", ""),
    (
        {"response_format": {"type": "xml"}},
        "invalid_value",
        "response_format.type",
        "'xml'. Supported values are: 'text', 'json_object', 'json_schema'",
    ),
    (
        {"response_format": {"type": "json_object", "json_schema": {}}},
        "unknown_parameter",
        "response_format.json_schema",
        "",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "missing_required_parameter",
        "response_format.json_schema",
        "",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": "{}"}},
        "invalid_type",
        "response_format.json_schema",
        "an object, but got a string",
    ),
    (
        json_schema(schema=SCHEMA),
        "missing_required_parameter",
        "response_format.json_schema.name",
        "",
    ),
    (
        json_schema(name="a b", schema=SCHEMA),
        "invalid_value",
        "response_format.json_schema.name",
        "pattern",
    ),
    (
        json_schema(name="x" * 65, schema=SCHEMA),
        "invalid_value",
        "response_format.json_schema.name",
        "",
    ),
    (
        json_schema(name="a"),
        "missing_required_parameter",
        "response_format.json_schema.schema",
        "",
    ),
    (
        json_schema(name="a", schema={}),
        "empty_object",
        "response_format.json_schema.schema",
        "Expected an object with minimum length 1, but got an empty object",
    ),
    (
        json_schema(name="a", schema=[]),
        "invalid_type",
        "response_format.json_schema.schema",
        "an object, but got an array",
    ),
    (
        json_schema(name="a", schema=SCHEMA, strict="yes"),
        "invalid_type",
        "response_format.json_schema.strict",
        "a boolean",
    ),
    (
        json_schema(name="a", schema=SCHEMA, foo=1),
        "unknown_parameter",
        "response_format.json_schema.foo",
        "",
    ),
    ({"regex": 5}, "invalid_type", "regex", "a string"),
    ({"choice": "yes"}, "invalid_type", "choice", "an array"),
    ({"choice": []}, "empty_array", "choice", ""),
    ({"choice": ["yes", 5]}, "invalid_type", "choice[1]", ""),
    ({"choice": ["yes", ""]}, "invalid_value", "choice", "none empty"),
    ({"regex": "a", "choice": ["a"]}, "invalid_value", "choice", "combined with 'regex'"),
    (
        {"response_format": {"type": "json_object"}, "regex": ""},
        "invalid_value",
        "regex",
        "combined with 'response_format'",
    ),
    (
        json_schema(name="a", schema=SCHEMA) | {"choice": ["a"]},
        "invalid_value",
        "choice",
        "combined with 'response_format'",
    ),
    ({"metadata": {"a": 1}}, "invalid_type", "metadata.a", ""),
    (messages(*[USER] * 4097), "array_above_max_length", "messages", "length 4096, but got an"),
    (content([PART] * 4097), "array_above_max_length", "messages[0].content", ""),
    ({"stop_token_ids": [1] * 4097}, "array_above_max_length", "stop_token_ids", ""),
    ({"choice": ["a"] * 4097}, "array_above_max_length", "choice", ""),
    ({"metadata": dict.fromkeys(map(str, range(4097)), "")}, *too_large("metadata")),
    ({"logit_bias": dict.fromkeys(map(str, range(70_000)), 1)}, *too_large("logit_bias")),
    ({"foo": 1}, None, None, "Unrecognized request argument supplied: foo"),
    ({"foo.bar": 1}, None, None, "Unrecognized request argument supplied: foo.bar"),
    ({"foo": None}, None, None, "Unrecognized request argument supplied: foo"),
    ({"max_new_tokens": 5}, None, None, "Unrecognized request argument supplied: max_new_tokens"),
]

UNSUPPORTED: dict[str, Any] = {
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "web_search_options": {},
    "moderation": {"model": "x"},
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
}


def refused_error(**options: Any) -> dict[str, Any]:
    received = len(SHARED_ENGINE.requests)
    response = send_request(None, "POST", CHAT, **options)
    assert response.status_code == 400
    assert response.headers["x-request-id"]
    assert len(SHARED_ENGINE.requests) == received
    error = error_body(response)
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(("fields", "code", "param", "message"), CASES)
def test_a_wrong_field_is_refused_by_name(
    fields: dict[str, Any], code: str | None, param: str | None, message: str
) -> None:
    body = {name: value for name, value in chat_body(**fields).items() if value is not ABSENT}
    error = refused_error(json=body)
    assert (error["code"], error["param"]) == (code, param)
    assert message in error["message"]


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_unsupported_openai_fields_are_refused_by_name(field: str) -> None:
    error = refused_error(json=chat_body(**{field: UNSUPPORTED[field]}))
    assert (error["code"], error["param"]) == ("unsupported_parameter", field)
    assert field in error["message"]


def test_a_schema_the_engine_cannot_enforce_is_refused() -> None:
    reason = 'cannot enforce this response_format: Unimplemented keys: ["not"]'
    engine = FakeEngine(reject=RequestError(reason, param="response_format"))
    body = chat_body(**json_schema(name="a", schema={"not": {}}))
    response = send_request(engine, "POST", CHAT, json=body)
    assert response.status_code == 400
    error = error_body(response)
    assert (error["message"], error["param"]) == (reason, "response_format")


def test_null_means_not_given_for_every_optional_field() -> None:
    engine = FakeEngine()
    honoured = ["temperature", "stop", "stream", "stream_options", "user", "top_k", "min_tokens"]
    optional = [*UNSUPPORTED, *honoured, "response_format", "regex", "choice"]
    body = chat_body(**dict.fromkeys(optional))
    assert send_request(engine, "POST", CHAT, json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it is empty"),
        (b"{", "could not parse"),
        (b'{"model": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "-Infinity"),
        (b'{"temperature": 1e999}', "1e999"),
        (b'{"model": "a", "model": "b"}', "duplicate key 'model'"),
        (b'{"messages": [{"role": "user", "role": "user"}]}', "duplicate key 'role'"),
        (b'{"messages": [' + b"{}," * 70_000 + b"{}]}", "more than 65536 objects"),
        (b'{"model": "\\ud800"}', "surrogates"),
        (b'{"\\udfff": 1}', "surrogates"),
        (b"\xff\xfe{}", "could not parse"),
        (b"[" * 100_000, "could not parse"),
        (b'{"n": ' + b"9" * 5000 + b"}", "could not parse"),
    ],
)
def test_a_body_that_is_not_json_is_refused(body: bytes, message: str) -> None:
    error = refused_error(content=body, headers={"content-type": "application/json"})
    assert (error["code"], error["param"]) == (None, None)
    assert message in error["message"]


@pytest.mark.parametrize(("body", "kind"), [(b'["hi"]', "an array"), (b"null", "null")])
def test_a_body_that_is_not_an_object_is_refused(body: bytes, kind: str) -> None:
    error = refused_error(content=body, headers={"content-type": "application/json"})
    assert error["code"] == "invalid_type"
    assert f"expected an object, but got {kind}" in error["message"]


def test_a_content_type_without_preflight_is_refused() -> None:
    error = refused_error(content=b"{}", headers={"content-type": "text/plain"})
    assert "application/json" in error["message"]


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ChatCompletionRequest, {"messages": [1] * 1000}),
        (ChatCompletionRequest, messages(USER) | {"stop_token_ids": [-1] * 1000}),
        (ChatCompletionRequest, messages(USER) | {f"x{i}": 0 for i in range(1000)}),
        (ChatCompletionRequest, messages(USER | {f"x{i}": 0 for i in range(1000)})),
        (CompletionRequest, {"prompt": [0, *["x"] * 1000]}),
        (CompletionRequest, {"prompt": [[-1] * 1000] * 60}),
        (ResponseRequest, {"input": [{"type": "message"}] * 1000}),
        (DetokenizeRequest, {"tokens": ["x"] * 1000}),
    ],
)
def test_validation_stops_after_the_first_errors(
    model: type[StrictModel], fields: dict[str, Any]
) -> None:
    """Every error takes time and memory, and blocks other requests."""
    with pytest.raises(pydantic.ValidationError) as caught:
        model.model_validate({"model": "m"} | fields)
    assert caught.value.error_count() <= 3


class CountingKey(str):
    """A key that counts comparisons."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountingKey.comparisons += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_a_duplicate_key_is_found_in_linear_time() -> None:
    pairs: list[tuple[str, Any]] = [(CountingKey(i), 0) for i in range(500)]
    pairs += [(CountingKey("a"), 0), (CountingKey("a"), 0)]
    with pytest.raises(ValueError, match="duplicate key 'a'"):
        object_from_pairs(pairs)
    assert CountingKey.comparisons < 2000


def test_parsing_a_large_body_does_not_block_other_requests() -> None:
    large = chat_body(model=5, chat_template_kwargs={"a": [{"b": 1}] * 60_000})
    app = create_app(FakeEngine())

    async def send_both() -> list[str]:
        finished = []
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def post() -> None:
                assert (await client.post(CHAT, json=large)).status_code == 400
                finished.append("large")

            async def health() -> None:
                assert (await client.get("/health")).status_code == 200
                finished.append("health")

            await asyncio.gather(post(), health())
        return finished

    assert asyncio.run(send_both()) == ["health", "large"]
