"""`--overflow truncate-oldest`: dropping the oldest turns of a conversation."""

from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, Message, ModelSpec, Tool
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, error_body, send_request
from tests.tiny import save_tiny_model

SYSTEM = {"role": "system", "content": "s" * 10}


def conversation(turns: int, size: int = 10) -> list[dict[str, Any]]:
    """Return messages; the fake engine counts one token per character, and its context has 128."""
    messages = []
    for i in range(turns):
        messages += [
            {"role": "user", "content": f"{i}".rjust(size, "q")},
            {"role": "assistant", "content": f"{i}".rjust(size, "a")},
        ]
    return [SYSTEM, *messages, {"role": "user", "content": "last".rjust(size)}]


@pytest.mark.parametrize("stream", [False, True])
def test_only_as_many_old_turns_as_necessary_are_dropped(stream: bool) -> None:
    engine = FakeEngine()
    body = chat_body(messages=conversation(8), max_tokens=20, stream=stream)
    reply = send_request(engine, "POST", CHAT, json=body, overflow="truncate-oldest")
    assert reply.status_code == 200
    (received,) = engine.requests
    assert engine.count_tokens(received.messages) <= 128 - 20
    assert received.messages[0].role == "system"
    assert received.messages[1].role == "user"
    assert received.messages[-1].content.endswith("last")
    # The next older turn would not fit.
    assert engine.count_tokens(received.messages) + 20 > 128 - 20
    assert reply.headers["x-llmctl-dropped-messages"] == str(18 - len(received.messages))


def test_a_conversation_that_fits_is_unchanged() -> None:
    engine = FakeEngine()
    body = chat_body(messages=conversation(2), max_tokens=20)
    reply = send_request(engine, "POST", CHAT, json=body, overflow="truncate-oldest")
    assert len(engine.requests[0].messages) == 6
    assert "x-llmctl-dropped-messages" not in reply.headers


def test_nothing_is_dropped_by_default() -> None:
    engine = FakeEngine()
    send_request(engine, "POST", CHAT, json=chat_body(messages=conversation(8)))
    assert len(engine.requests[0].messages) == 18


def test_the_last_question_is_never_dropped() -> None:
    engine = FakeEngine()
    body = chat_body(messages=conversation(2, size=200))
    send_request(engine, "POST", CHAT, json=body, overflow="truncate-oldest")
    assert [m.role for m in engine.requests[0].messages] == ["system", "user"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_api_drops_old_items_too(stream: bool) -> None:
    engine = FakeEngine()
    body = {
        "model": "fake-model",
        "input": conversation(8),
        "max_output_tokens": 20,
        "stream": stream,
    }
    reply = send_request(engine, "POST", "/v1/responses", json=body, overflow="truncate-oldest")
    assert reply.status_code == 200
    (received,) = engine.requests
    assert 128 - 40 < engine.count_tokens(received.messages) <= 128 - 20
    assert reply.headers["x-llmctl-dropped-messages"] == str(18 - len(received.messages))


def test_tool_definitions_count_against_the_context() -> None:
    engine = FakeEngine()
    tool = {"type": "function", "function": {"name": "f" * 50}}
    body = chat_body(messages=conversation(4), max_tokens=20, tools=[tool])
    send_request(engine, "POST", CHAT, json=body, overflow="truncate-oldest")
    assert 128 - 90 < engine.count_tokens(engine.requests[0].messages) <= 128 - 70


def test_a_response_header_says_that_the_prompt_describes_tools_in_words(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", max_position_embeddings=1024)
    tool = {"type": "function", "function": {"name": "add"}}
    with HFRunner(ModelSpec(str(folder), device="cpu")) as engine:
        engine.load()
        body = chat_body(model=engine.info().model_id, max_tokens=2)
        reply = send_request(engine, "POST", CHAT, json=body)
        assert reply.status_code == 200
        assert "x-llmctl-tools" not in reply.headers
        for stream in (False, True):
            more = {"tools": [tool], "tool_choice": "auto", "stream": stream}
            reply = send_request(engine, "POST", CHAT, json=body | more)
            assert reply.headers["x-llmctl-tools"] == "in-words"
        assert str(engine.info().response_formats) == (
            "tool calls in the format json, tools described in words; reasoning not separated"
        )


def test_the_count_includes_required_tools(tiny: HFRunner) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "adds " * 40}}
    body = chat_body(model=tiny.info().model_id, tools=[tool], tool_choice="required")
    request = GenerationRequest(
        messages=(Message("user", "hi"),),
        tools=(Tool("add", "adds " * 40, None),),
        required_tools=("add",),
    )
    refused = error_body(send_request(tiny, "POST", CHAT, json=body, overflow="truncate-oldest"))
    assert f"resulted in {tiny.count_prompt(request)} tokens" in refused["message"]
