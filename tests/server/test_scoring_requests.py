"""Requests for embeddings and log-likelihoods: cancellation, time limit and queue limit."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from llmctl.config import ServeConfig
from llmctl.engine.base import SupportsEmbed
from llmctl.server.app import create_app
from llmctl.types import Score, ScoreRequest
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body

THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Threads of asyncio's pool, in which generation requests are submitted."""

Call = tuple[str, str, dict[str, Any]]

CHAT_CALL: Call = ("POST", CHAT, chat_body())
EMBED: Call = ("POST", "/v1/embeddings", {"input": "abc"})
ECHO: Call = (
    "POST",
    "/v1/completions",
    {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0},
)
SCORE: Call = ("POST", "/v1/loglikelihoods", {"groups": [{"stem": "ab", "endings": ["c", "d"]}]})
UNLOAD: Call = ("DELETE", "/v1/adapters/a", {})

scoring_calls = pytest.mark.parametrize(
    "call", [EMBED, ECHO, SCORE], ids=["embed", "echo", "score"]
)


class PendingEngine(FakeEngine, SupportsEmbed):
    """Accepts scoring, embedding and unloading, and never finishes them."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[Future[Any]] = []

    def _add_pending(self) -> Future[Any]:
        self.pending.append(Future())
        return self.pending[-1]

    def submit_scores(self, requests: Sequence[ScoreRequest]) -> Future[list[tuple[Score, ...]]]:  # noqa: ARG002  a fake
        return self._add_pending()

    def submit_embeddings(self, *_: Any) -> Future[list[tuple[float, ...]]]:
        return self._add_pending()

    @property
    def adapters(self) -> tuple[str, ...]:
        return ("a",)

    def load_adapter(self, name: str, path: str) -> None:
        raise AssertionError(f"{name} at {path} is not loaded here")

    def begin_unload_adapter(self, name: str) -> Future[None]:  # noqa: ARG002  a fake
        return self._add_pending()


class Connection:
    """A request to the bare app, whose client can disconnect."""

    def __init__(self, app: Any, call: Call) -> None:
        method, path, body = call
        self._unread = [json.dumps({"model": "fake-model"} | body).encode()]
        self._disconnected = asyncio.Event()
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
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def disconnect(self) -> None:
        self._disconnected.set()

    async def answer(self) -> tuple[int, Any]:
        await asyncio.wait_for(self.task, 20)
        body = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], json.loads(body)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def serve(
    engine: FakeEngine, scenario: Callable[[Any], Coroutine[Any, Any, None]], **options: Any
) -> None:
    app = create_app(engine, ServeConfig(**{"log_requests": False} | options), scoring=True)
    asyncio.run(scenario(app))


@pytest.mark.slow
@pytest.mark.parametrize("call", [EMBED, ECHO, SCORE, UNLOAD])
def test_waiting_scoring_requests_do_not_block_generation(call: Call) -> None:
    engine = PendingEngine()

    async def scenario(app: Any) -> None:
        waiting = [Connection(app, call) for _ in range(THREADS + 4)]
        await until(lambda: len(engine.pending) >= THREADS)
        status, _ = await Connection(app, CHAT_CALL).answer()
        assert status == 200
        for connection in waiting:
            connection.task.cancel()
        await asyncio.gather(*(c.task for c in waiting), return_exceptions=True)

    serve(engine, scenario)


@pytest.mark.slow
@scoring_calls
def test_a_disconnect_cancels_scoring(call: Call) -> None:
    engine = PendingEngine()

    async def scenario(app: Any) -> None:
        connection = Connection(app, call)
        await until(lambda: len(engine.pending) == 1)
        connection.disconnect()
        await until(engine.pending[0].cancelled)
        await connection.task

    serve(engine, scenario)


@scoring_calls
def test_scoring_over_the_time_limit_is_504_and_cancelled(call: Call) -> None:
    engine = PendingEngine()

    async def scenario(app: Any) -> None:
        status, body = await Connection(app, call).answer()
        assert status == 504
        assert body["error"]["code"] == "timeout"
        await until(lambda: bool(engine.pending) and engine.pending[0].cancelled())

    serve(engine, scenario, request_timeout_s=0.2)


@pytest.mark.slow
@scoring_calls
def test_scoring_requests_count_against_the_queue_limit(call: Call) -> None:
    engine = PendingEngine()

    async def scenario(app: Any) -> None:
        rows = engine.state().max_rows
        waiting = [Connection(app, call) for _ in range(rows)]
        await until(lambda: len(engine.pending) == rows)
        for late in (call, CHAT_CALL):
            status, body = await Connection(app, late).answer()
            assert status == 429
            assert body["error"]["code"] == "rate_limit_exceeded"
        waiting[0].disconnect()
        await waiting[0].task
        status, _ = await Connection(app, CHAT_CALL).answer()
        assert status == 200
        for connection in waiting[1:]:
            connection.disconnect()
        await asyncio.gather(*(c.task for c in waiting))

    serve(engine, scenario, max_queue=0)


@pytest.mark.slow
def test_results_of_the_engine_are_returned() -> None:
    engine = PendingEngine()

    async def scenario(app: Any) -> None:
        embedding, unloading = Connection(app, EMBED), Connection(app, UNLOAD)
        await until(lambda: len(engine.pending) == 2)
        for future in engine.pending:
            future.set_result([(0.6, 0.8)])
        status, body = await embedding.answer()
        assert status == 200
        assert body["data"][0]["embedding"] == [0.6, 0.8]
        assert await unloading.answer() == (
            200,
            {"object": "adapter.deleted", "name": "a", "deleted": True},
        )

    serve(engine, scenario)
