"""`/v1/responses` with the official client: items, events, tools and schemas."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.hf_runner import HFRunner
from llmctl.types import Grammar, Message, ToolCall
from tests.fakes import TOOL_CALL_CHUNKS, TOOL_CALLS, FakeEngine
from tests.server.servers import error_body, running_server, send_request

URL = "/v1/responses"
TOOL: openai.types.responses.FunctionToolParam = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object"},
    "strict": True,
}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        running_server(FakeEngine()) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def respond(engine: FakeEngine | None = None, **fields: Any) -> Any:
    body = {"model": "fake-model", "input": "hi"} | fields
    return send_request(engine, "POST", URL, json=body)


def events(text: str) -> list[dict[str, Any]]:
    received = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        received.append(event)
    return received


def test_the_client_reads_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake-model", input="hi", instructions="Be kind.")
    assert response.output_text == "Hello"
    assert response.status == "completed"
    assert response.instructions == "Be kind."
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 2)


def test_the_client_reads_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake-model", input="hi") as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "Hello"


class Answer(pydantic.BaseModel):
    city: str


def test_the_client_parses_structured_output() -> None:
    engine = FakeEngine(('{"city": ', '"Paris"}'))
    with (
        running_server(engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        parsed = client.responses.parse(model="fake-model", input="?", text_format=Answer)
    assert parsed.output_parsed == Answer(city="Paris")
    grammar = engine.requests[0].sampling.grammar
    assert grammar is not None
    assert grammar.kind == "json_schema"
    assert json.loads(grammar.source)["properties"]["city"]["type"] == "string"


def test_events_are_numbered_and_end_with_the_same_response() -> None:
    pieces: tuple[str | ResponseDelta, ...] = (
        "I ",
        "add.",
        *(ResponseDelta(call=call) for call in TOOL_CALL_CHUNKS),
    )
    streamed = events(respond(FakeEngine(pieces), stream=True, tools=[TOOL]).text)
    whole = respond(FakeEngine(pieces), tools=[TOOL]).json()
    assert [e["sequence_number"] for e in streamed] == list(range(len(streamed)))
    assert [e["type"] for e in streamed][:2] == ["response.created", "response.in_progress"]
    final = streamed[-1]["response"]
    assert streamed[-1]["type"] == "response.completed"
    added = [e["item"]["id"] for e in streamed if e["type"] == "response.output_item.added"]
    done = [e["item"] for e in streamed if e["type"] == "response.output_item.done"]
    assert added == [item["id"] for item in done]
    assert done == final["output"]
    for response in (whole, final):
        read = Response.model_validate(response)
        assert read.output_text == "I add."
        calls = [item for item in read.output if isinstance(item, ResponseFunctionToolCall)]
        assert [(c.call_id, c.name, c.arguments) for c in calls] == [
            (c.id, c.name, c.arguments) for c in TOOL_CALLS
        ]


def test_calls_without_text_are_the_only_items() -> None:
    output = respond(FakeEngine((ResponseDelta(call=TOOL_CALLS[0]),)), tools=[TOOL]).json()[
        "output"
    ]
    assert [item["type"] for item in output] == ["function_call"]


def test_a_conversation_of_items_becomes_messages() -> None:
    engine = FakeEngine()
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1+1?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
        {
            "type": "function_call_output",
            "call_id": "d",
            "output": [{"type": "input_text", "text": "3"}, {"type": "input_text", "text": "4"}],
        },
    ]
    assert respond(engine, input=items, instructions="Be brief.").status_code == 200
    assert engine.requests[0].messages == (
        Message("system", "Be brief."),
        Message("user", "1+1?"),
        Message("assistant", "Let me see.", tool_calls=(ToolCall("add", "{}", "c"),)),
        Message("tool", "2", tool_call_id="c"),
        Message("tool", "34", tool_call_id="d"),
    )


def test_a_truncated_message_is_incomplete(tiny: HFRunner) -> None:
    body = {"model": tiny.info().model_id, "input": "hi", "max_output_tokens": 2, "temperature": 0}
    whole = send_request(tiny, "POST", URL, json=body).json()
    streamed = events(send_request(tiny, "POST", URL, json=body | {"stream": True}).text)
    done = next(e["item"] for e in streamed if e["type"] == "response.output_item.done")
    for response in (whole, streamed[-1]["response"]):
        assert response["status"] == "incomplete"
        assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert done["status"] == "incomplete"


def test_include_values_of_absent_items_are_accepted() -> None:
    """Agents request encrypted reasoning from every model."""
    assert respond(include=["reasoning.encrypted_content"]).status_code == 200


def test_tool_choice_and_text_format_reach_the_engine() -> None:
    engine = FakeEngine()
    named = {"type": "function", "name": "add"}
    respond(engine, tools=[TOOL], tool_choice=named)
    respond(engine, tools=[TOOL], tool_choice="none")
    respond(engine, text={"format": {"type": "json_object"}})
    first, second, third = engine.requests
    assert first.required_tools == ("add",)
    assert second.tools == ()
    assert third.sampling.grammar == Grammar("json_object")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"include": ["message.output_text.logprobs"]}, "unsupported_parameter", "include[0]"),
        ({"reasoning": {"effort": "high"}}, "unsupported_parameter", "reasoning"),
        ({"input": []}, "empty_array", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": [{"type": "image", "url": "x"}]}, "invalid_value", "input[0].type"),
        ({"input": ["hi"]}, "missing_required_parameter", "input[0].type"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"temperature": 3}, "integer_above_max_value", "temperature"),
        ({"foo": 1}, None, None),
    ],
)
def test_unsupported_fields_are_refused_by_name(
    fields: dict[str, Any], code: str | None, param: str | None
) -> None:
    reply = respond(**fields)
    assert reply.status_code == 400
    error = error_body(reply)
    assert error["param"] is None or error["param"].startswith(param)
    assert error["code"] == code or (code or "").endswith("max_value")
