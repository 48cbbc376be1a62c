"""Texts that are read without a reply, to embed or score them, are requests like any other."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from llmctl.config import ServeConfig
from llmctl.server.app import create_app
from llmctl.types import Score, ScoreRequest
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body

THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Of asyncio's pool, in which replies are submitted."""

Call = tuple[str, str, dict[str, Any]]

TALK: Call = ("POST", CHAT, chat_body())
EMBED: Call = ("POST", "/v1/embeddings", {"input": "abc"})
ECHO: Call = (
    "POST",
    "/v1/completions",
    {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0},
)
SCORE: Call = ("POST", "/v1/score", {"groups": [{"stem": "ab", "endings": ["c", "d"]}]})
UNLOAD: Call = ("DELETE", "/v1/adapters/a", {})

readings = pytest.mark.parametrize("call", [EMBED, ECHO, SCORE], ids=["embed", "echo", "score"])


class Unhurried(FakeEngine):
    """Takes on whatever is to be read, and leaves it there."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Future[Any]] = []

    def _take(self) -> Future[Any]:
        self.taken.append(Future())
        return self.taken[-1]

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> Future[list[tuple[Score, ...]]]:  # noqa: ARG002
        return self._take()

    def submit_embeddings(self, *_: Any) -> Future[list[tuple[float, ...]]]:
        return self._take()

    @property
    def adapters(self) -> tuple[str, ...]:
        return ("a",)

    def begin_unload_adapter(self, name: str) -> Future[None]:  # noqa: ARG002
        return self._take()


class Connection:
    """A request to the bare app, whose client can hang up."""

    def __init__(self, app: Any, call: Call) -> None:
        method, path, body = call
        self._unread = [json.dumps({"model": "fake-model"} | body).encode()]
        self._left = asyncio.Event()
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, object]:
        if self._unread:
            return {"type": "http.request", "body": self._unread.pop()}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        self._left.set()

    async def answer(self) -> tuple[int, Any]:
        await asyncio.wait_for(self.task, 20)
        body = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], json.loads(body)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def serve(
    engine: FakeEngine, talk: Callable[[Any], Coroutine[Any, Any, None]], **options: Any
) -> None:
    app = create_app(engine, ServeConfig(**{"log_requests": False} | options), scoring=True)
    asyncio.run(talk(app))


@pytest.mark.parametrize("call", [EMBED, ECHO, SCORE, UNLOAD])
def test_whoever_waits_for_a_reading_keeps_nobody_from_a_reply(call: Call) -> None:
    engine = Unhurried()

    async def talk(app: Any) -> None:
        waiting = [Connection(app, call) for _ in range(THREADS + 4)]
        await until(lambda: len(engine.taken) >= THREADS)
        status, _ = await Connection(app, TALK).answer()
        assert status == 200
        for connection in waiting:
            connection.task.cancel()
        await asyncio.gather(*(c.task for c in waiting), return_exceptions=True)

    serve(engine, talk)


@readings
def test_hanging_up_ends_a_reading(call: Call) -> None:
    engine = Unhurried()

    async def talk(app: Any) -> None:
        reading = Connection(app, call)
        await until(lambda: len(engine.taken) == 1)
        reading.hang_up()
        await until(engine.taken[0].cancelled)
        await reading.task

    serve(engine, talk)


@readings
def test_a_reading_that_takes_too_long_is_ended_and_answered(call: Call) -> None:
    engine = Unhurried()

    async def talk(app: Any) -> None:
        status, told = await Connection(app, call).answer()
        assert status == 504
        assert told["error"]["code"] == "timeout"
        await until(lambda: bool(engine.taken) and engine.taken[0].cancelled())

    serve(engine, talk, request_timeout_s=0.2)


@readings
def test_readings_fill_the_queue_like_replies(call: Call) -> None:
    engine = Unhurried()

    async def talk(app: Any) -> None:
        rows = engine.state().max_rows
        waiting = [Connection(app, call) for _ in range(rows)]
        await until(lambda: len(engine.taken) == rows)
        for late in (call, TALK):
            status, told = await Connection(app, late).answer()
            assert status == 429
            assert told["error"]["code"] == "rate_limit_exceeded"
        waiting[0].hang_up()
        await waiting[0].task
        status, _ = await Connection(app, TALK).answer()
        assert status == 200
        for connection in waiting[1:]:
            connection.hang_up()
        await asyncio.gather(*(c.task for c in waiting))

    serve(engine, talk, max_queue=0)


def test_what_is_read_is_answered() -> None:
    engine = Unhurried()

    async def talk(app: Any) -> None:
        reading, unloading = Connection(app, EMBED), Connection(app, UNLOAD)
        await until(lambda: len(engine.taken) == 2)
        for taken in engine.taken:
            taken.set_result([(0.6, 0.8)])
        status, told = await reading.answer()
        assert status == 200
        assert told["data"][0]["embedding"] == [0.6, 0.8]
        assert await unloading.answer() == (
            200,
            {"object": "adapter.deleted", "name": "a", "deleted": True},
        )

    serve(engine, talk)
