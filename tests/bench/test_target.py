"""Both targets with the same fake engine: over HTTP and in this process."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmctl.bench.target import EngineTarget, ServerTarget, TimedReply
from llmctl.config.bench import BenchConfig
from llmctl.engine.openai.wire import api_url
from llmctl.errors import (
    AuthenticationError,
    ConfigError,
    EngineBusyError,
    EngineFailedError,
    LlmctlError,
    RequestError,
)
from llmctl.types import ApiEndpoint, Message
from tests.fakes import FakeEngine
from tests.server.servers import running_server

MESSAGES = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
CONFIG = BenchConfig(max_tokens=5)


def over_http(engine: FakeEngine, config: BenchConfig = CONFIG, **fields: Any) -> TimedReply:
    async def request(url: str) -> TimedReply:
        target = ServerTarget(ApiEndpoint(url, **fields))
        try:
            await target.open()
            return await target.reply(MESSAGES, config)
        finally:
            await target.close()

    with running_server(engine) as url:
        return asyncio.run(request(url))


def in_process(engine: FakeEngine, config: BenchConfig = CONFIG) -> TimedReply:
    return asyncio.run(EngineTarget(engine).reply(MESSAGES, config))


@pytest.mark.parametrize("measure", [over_http, in_process])
def test_a_reply_is_timed_and_counted(measure: Any) -> None:
    engine = FakeEngine(("Hel", "lo", " you"))
    reply = measure(engine)
    assert reply.text == "Hello you"
    assert len(reply.arrivals_s) == 3
    assert [*reply.arrivals_s] == sorted(reply.arrivals_s)
    assert reply.sent_s < reply.arrivals_s[0]
    assert reply.ended_s >= reply.arrivals_s[-1]
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (7, 3, 0)


@pytest.mark.parametrize("measure", [over_http, in_process])
def test_both_targets_send_the_same_request(measure: Any) -> None:
    engine = FakeEngine()
    measure(engine)
    measure(engine, BenchConfig(max_tokens=9, temperature=0.5, ignore_eos=False))
    first, second = engine.requests
    assert list(first.messages) == MESSAGES
    assert (first.sampling.max_new_tokens, first.sampling.temperature) == (5, 0.0)
    assert first.sampling.ignore_eos is True
    assert (second.sampling.max_new_tokens, second.sampling.temperature) == (9, 0.5)
    assert not second.sampling.ignore_eos


@pytest.mark.parametrize("measure", [over_http, in_process])
def test_an_error_in_the_middle_of_a_reply_is_raised(measure: Any) -> None:
    with pytest.raises(LlmctlError, match="the engine failed"):
        measure(FakeEngine(fail=EngineFailedError("the engine failed")))


@pytest.mark.parametrize("measure", [over_http, in_process])
def test_a_reply_without_text_is_an_error(measure: Any) -> None:
    with pytest.raises(LlmctlError, match="no text"):
        measure(FakeEngine(pieces=()))


def test_an_unknown_model_is_an_error_with_a_hint() -> None:
    with pytest.raises(LlmctlError, match="nonsense") as caught:
        over_http(FakeEngine(), model="nonsense")
    assert "fake-model" in caught.value.hint


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    """Serve a list of an adapter and its model; answer completions with an error."""
    models = [{"id": name, "object": "model", "created": 0} for name in ("base:adapter", "base")]
    error = {"error": {"message": "unknown field ignore_eos"}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": models})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(status, error)

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "error", "ignore_eos", "hint"),
    [
        (400, RequestError, True, "--no-ignore-eos"),
        (400, RequestError, False, ""),
        (401, AuthenticationError, True, "--api-key"),
        (429, EngineBusyError, True, "try again"),
    ],
)
def test_a_refused_request_is_the_error_of_the_openai_backend(
    status: int, error: type[LlmctlError], ignore_eos: bool, hint: str
) -> None:
    async def measure(url: str) -> None:
        target = ServerTarget(ApiEndpoint(url))
        try:
            await target.open()
            assert target.model == "base"  # not the adapter that is listed first
            await target.reply(MESSAGES, BenchConfig(ignore_eos=ignore_eos))
        finally:
            await target.close()

    with refusing_server(status) as url, pytest.raises(error) as caught:
        asyncio.run(measure(url))
    assert type(caught.value) is error
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


def test_a_missing_server_is_an_error_with_its_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    target = ServerTarget(ApiEndpoint(f"http://127.0.0.1:{port}"))
    with pytest.raises(LlmctlError, match=f"no server answers at http://127.0.0.1:{port}/v1"):
        asyncio.run(target.open())


@pytest.mark.parametrize(
    ("given", "api"),
    [
        ("http://host:1", "http://host:1/v1"),
        ("http://host:1/", "http://host:1/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("http://host/openai/v1", "http://host/openai/v1"),
    ],
)
def test_v1_is_added_to_a_url_without_a_path(given: str, api: str) -> None:
    assert api_url(given) == api


@pytest.mark.parametrize(
    "given", ["localhost:8000", "ftp://host", "http://", "", "http://[1", "http://a:b"]
)
def test_an_invalid_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="not the URL"):
        api_url(given)
