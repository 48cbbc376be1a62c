"""How the streams of a level share the work, against a target that needs no model."""

import asyncio
import os
from collections.abc import Sequence

import pytest

from llmctl.bench.config import BenchConfig
from llmctl.bench.host import MemorySampler, describe_host
from llmctl.bench.load import LevelRun, run_level
from llmctl.bench.prompts import PromptBatch
from llmctl.bench.target import TimedReply
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Message
from tests.bench.records import reply


class Echo:
    """Answers "re: " and what was asked; knows how many asked at once."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.most_at_once = 0
        self._now = 0

    async def reply(self, messages: Sequence[Message], _: BenchConfig) -> TimedReply:
        self.asked.append([message.content for message in messages])
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(0.001)
        self._now -= 1
        if "fail" in messages[-1].content:
            raise LlmctlError("it broke")
        return reply(1.0, 2.0)


def hold(target: Echo, batch: PromptBatch, streams: int) -> tuple[LevelRun, int]:
    done: list[None] = []
    run = asyncio.run(
        run_level(target, batch, streams, BenchConfig(), on_done=lambda: done.append(None))
    )
    return run, len(done)


def test_every_conversation_is_held_once_by_so_many_streams() -> None:
    target = Echo()
    batch = PromptBatch(tuple((f"prompt {n}",) for n in range(12)))
    run, done = hold(target, batch, 3)
    assert sorted(target.asked) == sorted([*turns] for turns in batch.conversations)
    assert target.most_at_once == 3
    assert len(run.conversations) == done == 12
    assert run.wall_s > 0


def test_a_second_turn_sends_the_first_and_its_answer() -> None:
    target = Echo()
    run, _ = hold(target, PromptBatch((("one", "two"),)), 1)
    assert target.asked == [["one"], ["one", "text", "two"]]
    assert len(run.conversations[0]) == 2


def test_a_failure_ends_its_conversation_and_no_other() -> None:
    target = Echo()
    run, done = hold(target, PromptBatch((("one", "fail", "never"), ("four",))), 1)
    assert [str(error) for error in run.errors] == ["it broke"]
    assert [len(replies) for replies in run.conversations] == [1, 1]
    assert (len(target.asked), done) == (3, 2)


def test_the_opening_is_held_first_and_not_measured() -> None:
    target = Echo()
    run, done = hold(target, PromptBatch((("one",),), opening=("fail",)), 1)
    assert target.asked == [["fail"], ["one"]]
    assert (len(run.conversations), len(run.errors), done) == (1, 0, 1)


def test_the_memory_of_a_process_is_watched_while_a_level_runs() -> None:
    memory = MemorySampler(os.getpid())
    run = asyncio.run(run_level(Echo(), PromptBatch((("one",),)), 1, BenchConfig(), memory=memory))
    assert run.peak_rss_bytes is not None
    assert run.peak_rss_bytes > 10**7


def test_a_process_that_is_not_there_cannot_be_watched() -> None:
    with pytest.raises(ConfigError, match="process 4194305 is not running"):
        MemorySampler(2**22 + 1)


def test_the_machine_is_described_with_its_thread_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    machine = describe_host()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.variables["OMP_NUM_THREADS"] == "3"
    assert "PATH" not in machine.variables
