"""Responses conform to the schemas of OpenAI's API reference."""

from typing import Any

import jsonschema
import pytest

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import EngineFailedError
from llmctl.types import ToolCall
from tests.fakes import FakeEngine
from tests.server.schemas import openai_schemas as schemas
from tests.server.servers import CHAT, send_request, sse_events

MESSAGES = [{"role": "user", "content": "hi"}]
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
PIECES = (
    ResponseDelta(reasoning="Hm."),
    "I ",
    "add.",
    ResponseDelta(call=ToolCall("add", "{}", "call_1")),
)


@pytest.mark.parametrize(
    "fields", [{}, {"n": 3, "seed": 1, "temperature": 1}, {"logprobs": True, "top_logprobs": 4}]
)
def test_chat_completions_of_a_real_engine(fields: dict[str, Any], tiny: HFRunner) -> None:
    body = {"model": tiny.info().model_id, "messages": MESSAGES} | GREEDY | fields
    jsonschema.validate(send_request(tiny, "POST", CHAT, json=body).json(), schemas.CHAT_COMPLETION)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = sse_events(send_request(tiny, "POST", CHAT, json=body | options))
    assert done == "[DONE]"
    for chunk in chunks:
        jsonschema.validate(chunk, schemas.CHAT_CHUNK)
        assert chunk["id"] == chunks[0]["id"]
        assert chunk["created"] == chunks[0]["created"]
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    for index in range(fields.get("n", 1)):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["length"]


def test_tool_calls_and_reasoning() -> None:
    body = {"model": "fake-model", "messages": MESSAGES}
    complete = send_request(FakeEngine(PIECES), "POST", CHAT, json=body).json()
    jsonschema.validate(complete, schemas.CHAT_COMPLETION)
    streamed = send_request(FakeEngine(PIECES), "POST", CHAT, json=body | {"stream": True})
    for chunk in sse_events(streamed)[:-1]:
        jsonschema.validate(chunk, schemas.CHAT_CHUNK)
        assert "usage" not in chunk


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2, "echo": True}, {"n": 2}])
def test_completions(fields: dict[str, Any], tiny: HFRunner) -> None:
    body = {"model": tiny.info().model_id, "prompt": ["ab", "cde"]} | GREEDY | fields
    complete = send_request(tiny, "POST", "/v1/completions", json=body).json()
    jsonschema.validate(complete, schemas.COMPLETION)
    body.pop("echo", None)
    reply = send_request(tiny, "POST", "/v1/completions", json=body | {"stream": True})
    for chunk in sse_events(reply)[:-1]:
        jsonschema.validate(chunk, schemas.COMPLETION)


def test_models_embeddings_and_errors(tiny: HFRunner) -> None:
    model = tiny.info().model_id
    jsonschema.validate(send_request(tiny, "GET", "/v1/models").json(), schemas.MODELS)
    body = {"model": model, "input": ["a", "b"]}
    jsonschema.validate(
        send_request(tiny, "POST", "/v1/embeddings", json=body).json(), schemas.EMBEDDINGS
    )
    failing = FakeEngine(fail=EngineFailedError("broken"))
    chat = {"model": "fake-model", "messages": MESSAGES}
    for reply in (
        send_request(tiny, "GET", "/nothing"),
        send_request(tiny, "GET", CHAT),
        send_request(tiny, "POST", CHAT, content=b"{"),
        send_request(tiny, "POST", CHAT, json={"model": model}),
        send_request(tiny, "GET", "/v1/models", api_keys=("k",)),
        send_request(FakeEngine((), fail=EngineFailedError("broken")), "POST", CHAT, json=chat),
    ):
        assert reply.status_code >= 400
        jsonschema.validate(reply.json(), schemas.ERROR)
    streamed = send_request(failing, "POST", CHAT, json=chat | {"stream": True})
    jsonschema.validate(sse_events(streamed)[-1], schemas.ERROR)
