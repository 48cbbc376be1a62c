"""Both targets against the same engine: one over HTTP, one in this process."""

import asyncio
import socket
from typing import Any

import pytest

from llmctl.bench.config import BenchConfig, BenchServer
from llmctl.bench.target import EngineTarget, ServerTarget, TimedReply
from llmctl.engine.openai.wire import api_url
from llmctl.errors import ConfigError, EngineFailedError, LlmctlError
from llmctl.types import Message
from tests.fakes import FakeEngine
from tests.server.servers import running_server

ASKED = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
PLAN = BenchConfig(max_tokens=5)


def over_http(engine: FakeEngine, plan: BenchConfig = PLAN, **fields: Any) -> TimedReply:
    async def talk(url: str) -> TimedReply:
        target = ServerTarget(BenchServer(url, "server", **fields))
        try:
            await target.open()
            return await target.reply(ASKED, plan)
        finally:
            await target.close()

    with running_server(engine) as url:
        return asyncio.run(talk(url))


def in_process(engine: FakeEngine, plan: BenchConfig = PLAN) -> TimedReply:
    return asyncio.run(EngineTarget(engine).reply(ASKED, plan))


@pytest.mark.parametrize("ask", [over_http, in_process])
def test_a_reply_is_timed_and_counted(ask: Any) -> None:
    engine = FakeEngine(("Hel", "lo", " you"))
    reply = ask(engine)
    assert reply.text == "Hello you"
    assert len(reply.arrivals_s) == 3
    assert [*reply.arrivals_s] == sorted(reply.arrivals_s)
    assert reply.sent_s < reply.arrivals_s[0]
    assert reply.ended_s >= reply.arrivals_s[-1]
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (7, 3, 0)


@pytest.mark.parametrize("ask", [over_http, in_process])
def test_both_ask_the_same(ask: Any) -> None:
    engine = FakeEngine()
    ask(engine)
    ask(engine, BenchConfig(max_tokens=9, temperature=0.5, ignore_eos=False))
    first, second = engine.requests
    assert list(first.messages) == ASKED
    assert (first.sampling.max_new_tokens, first.sampling.temperature) == (5, 0.0)
    assert first.sampling.ignore_eos is True
    assert (second.sampling.max_new_tokens, second.sampling.temperature) == (9, 0.5)
    assert not second.sampling.ignore_eos


@pytest.mark.parametrize("ask", [over_http, in_process])
def test_what_fails_in_the_middle_is_an_error(ask: Any) -> None:
    with pytest.raises(LlmctlError, match="the engine broke"):
        ask(FakeEngine(fail=EngineFailedError("the engine broke")))


@pytest.mark.parametrize("ask", [over_http, in_process])
def test_a_reply_without_text_is_an_error(ask: Any) -> None:
    with pytest.raises(LlmctlError, match="no text"):
        ask(FakeEngine(pieces=()))


def test_an_unknown_model_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(LlmctlError, match="nonsense") as caught:
        over_http(FakeEngine(), model="nonsense")
    assert "--model" in caught.value.hint


def test_a_server_that_is_not_there_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    target = ServerTarget(BenchServer(f"http://127.0.0.1:{port}", "server"))
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
def test_an_address_without_a_path_gets_the_usual_one(given: str, api: str) -> None:
    assert api_url(given) == api


@pytest.mark.parametrize(
    "given", ["localhost:8000", "ftp://host", "http://", "", "http://[1", "http://a:b"]
)
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="no URL"):
        api_url(given)
