"""Limits on the size and duration of requests and replies, and on the queue."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.server.servers import (
    CHAT,
    chat_body,
    error_body,
    running_server,
    send_request,
    wait_until,
)


def address(url: str) -> tuple[str, int]:
    parts = httpx.URL(url)
    assert parts.port is not None
    return parts.host, parts.port


def alive(url: str) -> bool:
    return httpx.post(url + CHAT, json=chat_body()).status_code == 200


def test_a_body_above_the_limit_is_413_before_it_is_read() -> None:
    engine = FakeEngine()
    body = chat_body(messages=[{"role": "user", "content": "x" * 5000}])
    refused = send_request(engine, "POST", CHAT, json=body, max_body_bytes=4096)
    assert refused.status_code == 413
    assert error_body(refused)["code"] == "request_too_large"
    assert "4096 bytes" in error_body(refused)["message"]
    assert engine.requests == []


def test_a_body_of_unknown_length_is_413_once_it_is_too_large() -> None:
    engine = FakeEngine()

    def endless() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(50):
            yield b"x" * 1000

    with running_server(engine, max_body_bytes=4096) as url:
        headers = {"Content-Type": "application/json"}
        refused = httpx.post(url + CHAT, content=endless(), headers=headers)
        assert refused.status_code == 413
        assert alive(url)
    assert len(engine.requests) == 1


def test_an_incomplete_body_is_408() -> None:
    with (
        running_server(FakeEngine(), body_timeout_s=0.2) as url,
        socket.create_connection(address(url)) as client,
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f'{head}Content-Length: 500\r\n\r\n{{"model"'.encode())
        client.settimeout(5)
        reply = b"".join(iter(lambda: client.recv(4096), b"")).decode()
        assert reply.startswith("HTTP/1.1 408")
        assert '"code":"request_timeout"' in reply
        assert alive(url)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat"])
def test_a_connection_with_incomplete_headers_is_closed(sent: bytes) -> None:
    with (
        running_server(FakeEngine(), headers_timeout_s=0.2) as url,
        socket.create_connection(address(url)) as client,
    ):
        client.sendall(sent)
        client.settimeout(5)
        assert client.recv(4096) == b""
        assert alive(url)


def test_a_connection_may_be_idle_between_requests() -> None:
    with (
        running_server(FakeEngine(), headers_timeout_s=0.2) as url,
        httpx.Client(base_url=url) as client,
    ):
        for _ in range(2):
            assert client.post(CHAT, json=chat_body()).status_code == 200
            time.sleep(0.4)


def test_a_full_queue_is_429_with_retry_after() -> None:
    engine = FakeEngine(hold=threading.Event())
    with running_server(engine, max_queue=1) as url:
        waiting = [threading.Thread(target=alive, args=(url,)) for _ in range(5)]
        for thread in waiting:
            thread.start()
        assert wait_until(lambda: engine.in_flight == 5)
        refused = httpx.post(url + CHAT, json=chat_body(stream=True))
        assert refused.status_code == 429
        assert error_body(refused)["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert engine.hold is not None
        engine.hold.set()
        for thread in waiting:
            thread.join()
        assert alive(url)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_over_the_time_limit_is_504_and_cancelled(stream: bool) -> None:
    engine = FakeEngine(pieces=("a", "b"), hold=threading.Event())
    reply = send_request(engine, "POST", CHAT, json=chat_body(stream=stream), request_timeout_s=0.2)
    if stream:
        assert reply.status_code == 200
        last = json.loads(reply.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == "timeout"
    else:
        assert reply.status_code == 504
        assert error_body(reply)["code"] == "timeout"
    assert wait_until(lambda: engine.in_flight == 0)


class SlowEngine(FakeEngine):
    """Generates nothing for 0.35 seconds."""

    def _answer(self, *arguments: object) -> None:
        assert self.hold is not None
        self.hold.wait(0.35)
        self.hold.set()
        super()._answer(*arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_silent_stream_sends_pings() -> None:
    engine = SlowEngine(hold=threading.Event())
    text = send_request(engine, "POST", CHAT, json=chat_body(stream=True), ping_s=0.1).text
    assert text.startswith(": ping\n\n: ping\n\n")
    assert text.endswith("data: [DONE]\n\n")
    silent = SlowEngine(hold=threading.Event())
    assert (
        ": ping"
        not in send_request(silent, "POST", CHAT, json=chat_body(stream=True), ping_s=0).text
    )
