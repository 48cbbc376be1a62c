"""Tool calls and reasoning in chat completions, with the official client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.types import Tool, ToolCall
from tests.fakes import TOOL_CALL_CHUNKS, TOOL_CALLS, FakeEngine
from tests.server.servers import (
    CHAT,
    chat_body,
    post_chat,
    running_server,
    send_request,
    sse_events,
)

PIECES = (
    ResponseDelta(reasoning="Hm."),
    ResponseDelta(reasoning=" So."),
    *(ResponseDelta(call=call) for call in TOOL_CALL_CHUNKS),
)
ADD: openai.types.chat.ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        running_server(FakeEngine(PIECES)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_calls_come_with_null_content_and_their_finish_reason(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="fake-model", messages=[{"role": "user", "content": "1+1?"}], tools=[ADD]
    )
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.model_extra == {"reasoning_content": "Hm. So."}
    assert choice.message.tool_calls is not None
    first, second = choice.message.tool_calls
    assert first.type == "function"
    assert (first.id, first.function.name, first.function.arguments) == (
        "call_1",
        "add",
        '{"a": 1}',
    )
    assert second.id == "call_2"


def test_the_clients_stream_helper_reads_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="fake-model", messages=[{"role": "user", "content": "1+1?"}], tools=[ADD]
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    joined = [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls]
    assert joined == [(c.id, c.name, c.arguments) for c in TOOL_CALLS]


def test_id_type_and_name_of_a_call_are_streamed_once() -> None:
    events = sse_events(post_chat(FakeEngine(PIECES), stream=True, n=2))[:-1]
    for index in (0, 1):
        deltas = [
            call
            for event in events
            for choice in event["choices"]
            if choice["index"] == index
            for call in choice["delta"].get("tool_calls", ())
        ]
        assert [call["index"] for call in deltas] == [0, 0, 0, 1, 1]
        assert [call.get("id") for call in deltas] == ["call_1", None, None, "call_2", None]
        assert [call.get("type") for call in deltas] == ["function", None, None, "function", None]
        names = [call["function"].get("name") for call in deltas]
        assert names == ["add", None, None, "look_up", None]
        arguments = [call["function"]["arguments"] for call in deltas]
        assert arguments == ["", '{"a"', ": 1}", "", "{}"]
    reasoning = [e["choices"][0]["delta"].get("reasoning_content") for e in events]
    assert reasoning.count("Hm.") == 2


@pytest.mark.parametrize(
    ("choice", "offered", "required"),
    [
        (None, True, ()),
        ("auto", True, ()),
        ("none", False, ()),
        ("required", True, ("add",)),
        ({"type": "function", "function": {"name": "add"}}, True, ("add",)),
    ],
)
def test_every_tool_choice_reaches_the_engine(
    choice: Any, offered: bool, required: tuple[str, ...]
) -> None:
    engine = FakeEngine()
    assert post_chat(engine, tools=[ADD], tool_choice=choice).status_code == 200
    (received,) = engine.requests
    assert received.tools == ((Tool("add", "adds", {"type": "object"}),) if offered else ())
    assert received.required_tools == required


def test_earlier_calls_and_results_reach_the_engine() -> None:
    engine = FakeEngine()
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    assert send_request(engine, "POST", CHAT, json=chat_body(messages=messages)).status_code == 200
    _, assistant, result = engine.requests[0].messages
    assert assistant.tool_calls == (ToolCall("add", '{"a": 1}', "c1"),)
    assert (assistant.content, assistant.reasoning) == ("", "Hm.")
    assert (result.tool_call_id, result.content) == ("c1", "2")


def test_template_variables_and_a_partial_reply_reach_the_engine() -> None:
    engine = FakeEngine()
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "I th"}]
    reply = post_chat(
        engine,
        messages=messages,
        continue_final_message=True,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert reply.status_code == 200
    assert engine.requests[0].continue_final_message
    assert engine.requests[0].template_kwargs == {"enable_thinking": False}
