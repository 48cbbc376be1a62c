"""Load generation: the conversations of one concurrency level over concurrent streams."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from llmctl.bench.host import MemorySampler
from llmctl.bench.prompts import PromptBatch
from llmctl.bench.target import BenchTarget, TimedReply
from llmctl.config.bench import BenchConfig
from llmctl.errors import LlmctlError
from llmctl.types import Message

MEMORY_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class LevelRun:
    """The raw result of one concurrency level."""

    conversations: tuple[tuple[TimedReply, ...], ...]
    """The replies of each, turn by turn; an error ends a conversation early."""
    errors: tuple[LlmctlError, ...]
    wall_s: float
    peak_rss_bytes: int | None


async def run_level(
    target: BenchTarget,
    batch: PromptBatch,
    streams: int,
    config: BenchConfig,
    *,
    memory: MemorySampler | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> LevelRun:
    """Run all conversations, `streams` at a time: a free stream takes the next one.

    Args:
        target: the server or engine to measure.
        batch: the conversations.
        streams: number of concurrent streams.
        config: of the replies.
        memory: records the peak memory of the target's process.
        on_done: called after each conversation.
    """
    if batch.priming is not None:
        # An error here also occurs in the measured conversations, where it is counted.
        with suppress(LlmctlError):
            await _converse(target, batch.priming, config, [])
    remaining = iter(batch.conversations)
    conversations: list[list[TimedReply]] = []
    errors: list[LlmctlError] = []

    async def stream() -> None:
        for turns in remaining:
            replies: list[TimedReply] = []
            conversations.append(replies)
            try:
                await _converse(target, turns, config, replies)
            except LlmctlError as error:
                errors.append(error)
            on_done()

    sampling = None
    if memory is not None:
        memory.reset()
        sampling = asyncio.create_task(_sample_memory(memory))
    start = perf_counter()
    try:
        await asyncio.gather(*(stream() for _ in range(streams)))
    finally:
        if sampling is not None:
            sampling.cancel()
    return LevelRun(
        tuple(tuple(replies) for replies in conversations),
        tuple(errors),
        perf_counter() - start,
        None if memory is None else memory.peak_bytes,
    )


async def _converse(
    target: BenchTarget, turns: tuple[str, ...], config: BenchConfig, replies: list[TimedReply]
) -> None:
    """Run one conversation as a chat client does: every turn sends the whole history."""
    messages: list[Message] = []
    for text in turns:
        messages.append(Message("user", text))
        reply = await target.reply(messages, config)
        replies.append(reply)
        messages.append(Message("assistant", reply.text))


async def _sample_memory(memory: MemorySampler) -> None:
    while True:
        memory.sample()
        await asyncio.sleep(MEMORY_INTERVAL_S)
