"""`/v1/chat/completions`: complete and streamed responses, and errors."""

import json
import logging
import threading
from typing import Any

import pytest

from llmctl.engine.stream import GenerationStream
from llmctl.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineFailedError,
    EngineStoppedError,
    LlmctlError,
    RequestError,
)
from llmctl.types import GenerationChunk, GenerationRequest, TokenLogprob, TokenProb, Usage
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, error_body, post_chat, send_request, sse_events

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 0},
}


class ScriptedEngine(FakeEngine):
    """Generates exactly these chunks."""

    def __init__(self, *chunks: GenerationChunk) -> None:
        super().__init__()
        self.chunks = chunks

    def submit(self, request: GenerationRequest) -> GenerationStream:
        stream = GenerationStream(request.request_id)
        for chunk in self.chunks:
            stream.put(chunk)
        stream.finish()
        return stream


class BrokenEngine(FakeEngine):
    """Raises an unexpected exception in `submit`."""

    def submit(self, request: GenerationRequest) -> GenerationStream:
        raise RuntimeError(f"secret of {request.request_id}")


def probability(token: str, logprob: float) -> TokenProb:
    return TokenProb(1, token, token.encode(), logprob)


def token_logprob(token: str, logprob: float, *top: TokenProb) -> TokenLogprob:
    return TokenLogprob(probability(token, logprob), top)


def test_a_reply_has_exactly_openais_fields() -> None:
    engine = FakeEngine()
    reply = post_chat(engine).json()
    assert reply.pop("created") > 1_700_000_000
    assert reply == {
        "id": f"chatcmpl-{engine.requests[0].request_id}",
        "object": "chat.completion",
        "model": "fake-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "system_fingerprint": None,
    }


def test_choices_are_in_order() -> None:
    reply = post_chat(n=3).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 6


def test_a_stream_is_role_then_text_then_finish_then_done() -> None:
    response = post_chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = sse_events(response)
    assert done == "[DONE]"
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        for delta, finish in [
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hel"}, None),
            ({"content": "lo"}, None),
            ({}, "stop"),
        ]
    ]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    for chunk in chunks:
        assert chunk.keys() == {
            "id",
            "object",
            "created",
            "model",
            "choices",
            "system_fingerprint",
        }
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "fake-model"


def test_include_usage_adds_a_chunk_with_the_usage() -> None:
    *chunks, last, _ = sse_events(post_chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == USAGE


def test_every_streamed_choice_has_its_role_and_finish_reason() -> None:
    *chunks, _ = sse_events(post_chat(stream=True, n=3))
    for index in range(3):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert choices[-1]["delta"] == {}
        reasons = [choice["finish_reason"] for choice in choices]
        assert reasons == [None, None, None, "stop"]


@pytest.mark.parametrize("text", ["\u2028", "\x85", "é😀\u2029", "a\nb\r\n", '"\\'])
def test_line_separators_in_text_do_not_split_events(text: str) -> None:
    *chunks, _ = sse_events(post_chat(FakeEngine(pieces=(text,)), stream=True))
    assert chunks[1]["choices"][0]["delta"] == {"content": text}


def test_an_empty_reply_has_role_and_finish_reason() -> None:
    engine = ScriptedEngine(GenerationChunk("", finish_reason="length", usage=Usage(7, 0)))
    assert post_chat(engine).json()["choices"][0]["message"]["content"] == ""
    *chunks, _ = sse_events(post_chat(engine, stream=True))
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, "length"]


def test_logprobs_are_finite_and_stay_with_their_tokens() -> None:
    engine = ScriptedEngine(
        GenerationChunk("é", logprobs=(token_logprob("é", -0.5, probability("é", -0.5)),)),
        # Text that the stop scanner still withholds has its logprobs already.
        GenerationChunk("", logprobs=(token_logprob("x", float("-inf")),)),
        GenerationChunk("x", logprobs=(token_logprob("y", float("nan")),)),
        GenerationChunk("", finish_reason="stop", usage=Usage(7, 3)),
    )
    entries = [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
        },
        {"token": "x", "logprob": -9999.0, "bytes": [120], "top_logprobs": []},
        {"token": "y", "logprob": -9999.0, "bytes": [121], "top_logprobs": []},
    ]
    whole = post_chat(engine, logprobs=True, top_logprobs=1).json()
    assert whole["choices"][0]["logprobs"] == {"content": entries, "refusal": None}

    *chunks, _ = sse_events(post_chat(engine, logprobs=True, top_logprobs=1, stream=True))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert streamed == [
        None,
        *({"content": [entry], "refusal": None} for entry in entries),
        None,
    ]


def test_the_response_names_the_model_as_the_request_does() -> None:
    engine = FakeEngine()
    reply = send_request(
        engine, "POST", CHAT, json=chat_body(model="gpt-4o"), served_names=("gpt-4o",)
    )
    assert reply.json()["model"] == "gpt-4o"


@pytest.mark.parametrize("field", ["model", "tool_choice", "role"])
@pytest.mark.parametrize("word", ["x", "x "])
def test_an_error_quotes_little_of_a_long_request(field: str, word: str) -> None:
    long = word * 500_000
    value: Any = [{"role": long, "content": "hi"}] if field == "role" else long
    response = post_chat(**{"messages" if field == "role" else field: value})
    assert response.status_code in (400, 404)
    assert len(response.text) < 3000


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_404_and_lists_the_served_ones(stream: bool) -> None:
    response = post_chat(model="gpt-4o", stream=stream)
    assert response.status_code == 404
    error = error_body(response)
    assert (error["code"], error["param"]) == ("model_not_found", None)
    assert "The model `gpt-4o` does not exist or you do not have access to it." in error["message"]
    assert "fake-model" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (
            ContextLengthError("too long", param="messages"),
            400,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (RequestError("bad", param="messages"), 400, "invalid_request_error", "invalid_value"),
        (EngineStoppedError("closing"), 503, "server_error", None),
        (EngineFailedError("broke"), 500, "server_error", None),
    ],
)
def test_an_error_before_the_first_chunk_sets_the_status(
    error: LlmctlError, status: int, kind: str, code: str | None, stream: bool
) -> None:
    for engine in (FakeEngine(reject=error), FakeEngine(pieces=(), fail=error)):
        response = post_chat(engine, stream=stream)
        assert response.status_code == status
        assert error_body(response) == {
            "message": str(error),
            "type": kind,
            "param": error.param,
            "code": code,
        }


def test_a_busy_engine_is_429_with_retry_after() -> None:
    response = post_chat(FakeEngine(reject=EngineBusyError("64 requests wait")))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert error_body(response)["code"] == "rate_limit_exceeded"


def test_a_hint_is_part_of_the_message() -> None:
    response = post_chat(
        FakeEngine(reject=RequestError("no template", hint="pass --chat-template"))
    )
    assert error_body(response)["message"] == "no template (pass --chat-template)"


def test_an_error_within_a_stream_is_its_last_event() -> None:
    failing = FakeEngine(fail=EngineFailedError('it said "no"\n'))
    *_, text, last = sse_events(post_chat(failing, stream=True))
    assert text["choices"][0]["delta"] == {"content": "lo"}
    assert last == {
        "error": {"message": 'it said "no"\n', "type": "server_error", "param": None, "code": None}
    }


def test_without_streaming_a_late_error_sets_the_status() -> None:
    response = post_chat(FakeEngine(fail=EngineFailedError("broke")))
    assert response.status_code == 500


def test_a_reply_that_ends_early_is_an_error() -> None:
    cut = ScriptedEngine(GenerationChunk("Hel"))
    assert post_chat(cut).status_code == 503
    assert sse_events(post_chat(cut, stream=True))[-1]["error"]["type"] == "server_error"
    for stream in (False, True):
        assert post_chat(ScriptedEngine(), stream=stream).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_unexpected_exceptions_are_logged_and_not_shown(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = post_chat(BrokenEngine(), stream=stream)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert error_body(response)["type"] == "server_error"
    assert response.headers["x-request-id"] in caplog.text
    assert "secret" in caplog.text


@pytest.mark.parametrize("sent", ["abc-123", "two words"])
def test_a_valid_request_id_is_returned(sent: str) -> None:
    headers = {"x-request-id": sent}
    response = send_request(None, "POST", CHAT, json=chat_body(), headers=headers)
    assert response.headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize("sent", ["", "x" * 129, "caf\u00e9", "a\tb"])
def test_an_invalid_request_id_is_replaced(sent: str) -> None:
    headers = [(b"x-request-id", sent.encode("latin-1"))]
    response = send_request(None, "GET", "/health", headers=headers)
    assert response.headers["x-request-id"] not in ("", sent)


def test_requests_with_the_same_id_have_different_engine_ids() -> None:
    engine = FakeEngine()
    for _ in range(2):
        send_request(engine, "POST", CHAT, json=chat_body(), headers={"x-request-id": "same"})
    first, second = engine.requests
    assert first.request_id != second.request_id


def test_submission_runs_outside_the_event_loop() -> None:
    class SlowEngine(FakeEngine):
        def submit(self, request: GenerationRequest) -> GenerationStream:
            threads.append(threading.current_thread())
            return super().submit(request)

    threads: list[threading.Thread] = []
    post_chat(SlowEngine())
    assert threads
    assert threads[0] is not threading.main_thread()


def test_messages_copied_from_a_response_are_accepted() -> None:
    engine = FakeEngine()
    copied: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [],
    }
    response = post_chat(
        engine, messages=[{"role": "user", "content": "hi", "name": "Ann"}, copied]
    )
    assert response.status_code == 200
    assert [message.content for message in engine.requests[0].messages] == ["hi", ""]


def test_the_openapi_schema_has_the_request_and_no_422() -> None:
    schema = send_request(None, "GET", "/openapi.json").json()
    operation = schema["paths"][CHAT]["post"]
    assert "ChatCompletionRequest" in json.dumps(operation["requestBody"])
    assert operation["responses"].keys() == {"200", "4XX", "5XX"}
