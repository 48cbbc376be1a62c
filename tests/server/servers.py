"""Test servers: the bare application, and a real server on a free port."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine
from llmctl.server.app import create_app
from llmctl.server.middleware.limits import BODY_TIMEOUT_S, HEADERS_TIMEOUT_S
from llmctl.server.run import Server, bind, socket_url
from tests.fakes import FakeEngine

CHAT = "/v1/chat/completions"


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]} | fields


SHARED_ENGINE = FakeEngine()


@cache
def shared_app(config: ServeConfig) -> FastAPI:
    """Return an application around `SHARED_ENGINE`; most of a test's time is its construction."""
    return create_app(SHARED_ENGINE, config)


def send_request(
    engine: BaseEngine | None, method: str, path: str, **options: Any
) -> httpx.Response:
    """Send one request to the bare app, with the shared fake engine if `engine` is `None`."""
    names = {f.name for f in fields(ServeConfig)}
    chosen = {name: options.pop(name) for name in list(options) if name in names}
    config = ServeConfig(**{"log_requests": False} | chosen)
    app = shared_app(config) if engine is None else create_app(engine, config)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def post_chat(engine: BaseEngine | None = None, **fields: Any) -> httpx.Response:
    return send_request(engine, "POST", CHAT, json=chat_body(**fields))


def error_body(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def sse_events(response: httpx.Response) -> list[Any]:
    """Return the events of a stream, split with `str.splitlines` as many clients do."""
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@contextmanager
def running_server(
    engine: BaseEngine,
    *,
    body_timeout_s: float = BODY_TIMEOUT_S,
    headers_timeout_s: float = HEADERS_TIMEOUT_S,
    **options: Any,
) -> Iterator[str]:
    """Run a real server in a thread; yield its URL."""
    sock = bind("127.0.0.1", 0)
    config = ServeConfig(**{"log_requests": False} | options)
    app = create_app(engine, config, body_timeout_s=body_timeout_s)
    server = Server(app, on_deadline=engine.close, drain_s=2, headers_timeout_s=headers_timeout_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield socket_url(sock)
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool], within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
