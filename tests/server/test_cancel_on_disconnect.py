"""Cancellation of requests whose client disconnects."""

import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from llmctl.engine.stream import GenerationStream
from llmctl.types import GenerationRequest
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, running_server, wait_until


class SlowSubmitEngine(FakeEngine):
    """Does not return from `submit` until `go` is set."""

    def __init__(self) -> None:
        super().__init__(hold=threading.Event())
        self.submitting = threading.Event()
        self.go = threading.Event()

    def submit(self, request: GenerationRequest) -> GenerationStream:
        self.submitting.set()
        self.go.wait(5)
        return super().submit(request)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(hold=threading.Event())


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with running_server(engine) as url:
        yield url


def send_request(url: str, *, stream: bool) -> socket.socket:
    """Send a whole request and return its connection."""
    parts = urlsplit(url)
    body = httpx.Request("POST", url + CHAT, json=chat_body(stream=stream))
    head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
    connection = socket.create_connection((parts.hostname, parts.port))
    connection.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + body.content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_cancels_the_request(engine: FakeEngine, url: str, stream: bool) -> None:
    connection = send_request(url, stream=stream)
    assert wait_until(lambda: bool(engine.streams))
    if stream:
        assert connection.recv(1000)
    assert not engine.streams[0].cancelled
    connection.close()
    assert wait_until(lambda: engine.streams[0].cancelled)
    assert wait_until(lambda: engine.in_flight == 0)
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_during_submission_cancels_the_request(stream: bool) -> None:
    engine = SlowSubmitEngine()
    with running_server(engine) as url:
        connection = send_request(url, stream=stream)
        assert engine.submitting.wait(5)
        connection.close()
        # The answer to a second request shows that the server has seen the disconnect.
        assert httpx.get(f"{url}/health").status_code == 200
        engine.go.set()
        assert wait_until(lambda: bool(engine.streams) and engine.streams[0].cancelled)


def test_a_connected_client_is_not_cancelled(engine: FakeEngine, url: str) -> None:
    connection = send_request(url, stream=True)
    assert wait_until(lambda: bool(engine.streams))
    assert engine.hold is not None
    engine.hold.set()
    received = b""
    while b"[DONE]" not in received:
        received += connection.recv(1000)
    assert engine.streams[0].ended
    connection.close()
