"""How does a target do with N streams at once? Holds the conversations and keeps what came."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from llmctl.bench.config import BenchConfig
from llmctl.bench.host import MemorySampler
from llmctl.bench.prompts import PromptBatch
from llmctl.bench.target import BenchTarget, TimedReply
from llmctl.errors import LlmctlError
from llmctl.types import Message

MEMORY_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class LevelRun:
    """What came of the conversations of one level."""

    conversations: tuple[tuple[TimedReply, ...], ...]
    """The replies of each, turn by turn; fewer than turns where an error ended it."""
    errors: tuple[LlmctlError, ...]
    wall_s: float
    peak_rss_bytes: int | None


async def run_level(
    target: BenchTarget,
    batch: PromptBatch,
    streams: int,
    plan: BenchConfig,
    *,
    memory: MemorySampler | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> LevelRun:
    """Hold all conversations, `streams` at a time: whoever is free takes the next.

    Args:
        on_done: called after each conversation.
    """
    if batch.opening is not None:
        # If this fails, so will the others, which are counted.
        with suppress(LlmctlError):
            await _converse(target, batch.opening, plan, [])
    waiting = iter(batch.conversations)
    held: list[list[TimedReply]] = []
    errors: list[LlmctlError] = []

    async def stream() -> None:
        for turns in waiting:
            replies: list[TimedReply] = []
            held.append(replies)
            try:
                await _converse(target, turns, plan, replies)
            except LlmctlError as error:
                errors.append(error)
            on_done()

    watching = None
    if memory is not None:
        memory.begin()
        watching = asyncio.create_task(_watch(memory))
    begun = perf_counter()
    try:
        await asyncio.gather(*(stream() for _ in range(streams)))
    finally:
        if watching is not None:
            watching.cancel()
    return LevelRun(
        tuple(tuple(replies) for replies in held),
        tuple(errors),
        perf_counter() - begun,
        None if memory is None else memory.peak_bytes,
    )


async def _converse(
    target: BenchTarget, turns: tuple[str, ...], plan: BenchConfig, replies: list[TimedReply]
) -> None:
    """Hold one conversation as a chat client does: every turn sends all that was said before."""
    messages: list[Message] = []
    for text in turns:
        messages.append(Message("user", text))
        reply = await target.reply(messages, plan)
        replies.append(reply)
        messages.append(Message("assistant", reply.text))


async def _watch(memory: MemorySampler) -> None:
    while True:
        memory.sample()
        await asyncio.sleep(MEMORY_INTERVAL_S)
