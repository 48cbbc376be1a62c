"""Both targets with the same fake engine: over HTTP and in this process."""

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

MESSAGES = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
CONFIG = BenchConfig(max_tokens=5)


def over_http(engine: FakeEngine, config: BenchConfig = CONFIG, **fields: Any) -> TimedReply:
    async def request(url: str) -> TimedReply:
        target = ServerTarget(BenchServer(url, "server", **fields))
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
    assert "--model" in caught.value.hint


def test_a_missing_server_is_an_error_with_its_url() -> None:
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
def test_v1_is_added_to_a_url_without_a_path(given: str, api: str) -> None:
    assert api_url(given) == api


@pytest.mark.parametrize(
    "given", ["localhost:8000", "ftp://host", "http://", "", "http://[1", "http://a:b"]
)
def test_an_invalid_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="no URL"):
        api_url(given)
