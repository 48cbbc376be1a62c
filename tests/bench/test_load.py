"""Load generation with a fake target, and the description of the host."""

import asyncio
import os
from collections.abc import Sequence

import pytest

from llmctl.bench.host import MemorySampler, describe_host
from llmctl.bench.load import LevelRun, run_level
from llmctl.bench.prompts import PromptBatch
from llmctl.bench.target import TimedReply
from llmctl.config.bench import BenchConfig
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Message
from tests.bench.records import reply


class FakeTarget:
    """Records requests and their concurrency; fails on messages that contain "fail"."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.max_concurrency = 0
        self._active = 0

    async def reply(self, messages: Sequence[Message], _: BenchConfig) -> TimedReply:
        self.requests.append([message.content for message in messages])
        self._active += 1
        self.max_concurrency = max(self.max_concurrency, self._active)
        await asyncio.sleep(0.001)
        self._active -= 1
        if "fail" in messages[-1].content:
            raise LlmctlError("the request failed")
        return reply(1.0, 2.0)


def run(target: FakeTarget, batch: PromptBatch, streams: int) -> tuple[LevelRun, int]:
    done: list[None] = []
    result = asyncio.run(
        run_level(target, batch, streams, BenchConfig(), on_done=lambda: done.append(None))
    )
    return result, len(done)


def test_the_streams_run_every_conversation_once() -> None:
    target = FakeTarget()
    batch = PromptBatch(tuple((f"prompt {n}",) for n in range(12)))
    result, done = run(target, batch, 3)
    assert sorted(target.requests) == sorted([*turns] for turns in batch.conversations)
    assert target.max_concurrency == 3
    assert len(result.conversations) == done == 12
    assert result.wall_s > 0


def test_a_second_turn_sends_the_first_turn_and_its_reply() -> None:
    target = FakeTarget()
    result, _ = run(target, PromptBatch((("one", "two"),)), 1)
    assert target.requests == [["one"], ["one", "text", "two"]]
    assert len(result.conversations[0]) == 2


def test_an_error_ends_only_its_own_conversation() -> None:
    target = FakeTarget()
    result, done = run(target, PromptBatch((("one", "fail", "never"), ("four",))), 1)
    assert [str(error) for error in result.errors] == ["the request failed"]
    assert [len(replies) for replies in result.conversations] == [1, 1]
    assert (len(target.requests), done) == (3, 2)


def test_the_priming_conversation_runs_first_and_is_not_measured() -> None:
    target = FakeTarget()
    result, done = run(target, PromptBatch((("one",),), priming=("fail",)), 1)
    assert target.requests == [["fail"], ["one"]]
    assert (len(result.conversations), len(result.errors), done) == (1, 0, 1)


def test_the_peak_memory_of_a_process_is_measured_during_a_level() -> None:
    memory = MemorySampler(os.getpid())
    result = asyncio.run(
        run_level(FakeTarget(), PromptBatch((("one",),)), 1, BenchConfig(), memory=memory)
    )
    assert result.peak_rss_bytes is not None
    assert result.peak_rss_bytes > 10**7


def test_a_process_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="process 4194305 is not running"):
        MemorySampler(2**22 + 1)


def test_the_host_is_described_with_its_thread_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    host = describe_host()
    assert host.cpu
    assert host.cores >= 1
    assert host.variables["OMP_NUM_THREADS"] == "3"
    assert "PATH" not in host.variables
