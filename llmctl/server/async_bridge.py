"""How do chunks get from the engine's threads into the event loop, and cancels back?"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

from llmctl.engine.base import BaseEngine
from llmctl.engine.stream import StreamItem
from llmctl.errors import EngineStoppedError, LlmctlError, RequestTimeoutError
from llmctl.types import GenerationChunk, GenerationRequest

T = TypeVar("T")


class Cancellable(Protocol):
    """What the engine hands out for work in line."""

    def cancel(self) -> object: ...


C = TypeVar("C", bound=Cancellable)


def ignore_accepted() -> None:
    """Do without being told that a request is in line."""


async def stream_chunks(
    engine: BaseEngine,
    request: GenerationRequest,
    timeout_s: float | None = None,
    accepted: Callable[[], None] = ignore_accepted,
) -> AsyncGenerator[GenerationChunk, None]:
    """Submit the request and yield its chunks to the last. Closing the generator cancels it.

    Args:
        accepted: called once the engine has found nothing wrong with the request.

    Raises:
        LlmctlError: the engine refused or failed it.
        RequestTimeoutError: it has not ended after `timeout_s` seconds.
        EngineStoppedError: it ended before the reply was complete.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[StreamItem] = asyncio.Queue()

    def post(item: StreamItem) -> None:
        # The loop may close while the engine thread still talks; raising would kill that thread.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    submit = partial(engine.submit, request)
    with _deadline(loop, items, timeout_s), await submit_in_thread(submit) as stream:
        accepted()
        stream.listen(post)
        complete = False
        while (item := await items.get()) is not None:
            if isinstance(item, LlmctlError):
                raise item
            complete = item.usage is not None
            yield item
        if not complete:
            raise EngineStoppedError("the server stopped before the reply was complete")


async def await_result(submit: Callable[[], Future[T]], timeout_s: float | None = None) -> T:
    """Wait for what the engine reads, without holding a thread. Cancelling this ends the reading.

    Args:
        submit: asks the engine for it.

    Raises:
        LlmctlError: the engine refused or failed it.
        RequestTimeoutError: it has not ended after `timeout_s` seconds.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(await submit_in_thread(submit))
    except TimeoutError as error:
        raise timeout_error(timeout_s) from error


def timeout_error(timeout_s: float | None) -> RequestTimeoutError:
    """Return what answers a request after the server's `--request-timeout`."""
    return RequestTimeoutError(
        f"The reply took longer than this server's limit of {timeout_s:g} seconds.",
        hint="ask for fewer tokens, or try again when fewer people ask",
    )


@contextmanager
def _deadline(
    loop: asyncio.AbstractEventLoop, items: asyncio.Queue[StreamItem], timeout_s: float | None
) -> Iterator[None]:
    """Put an error among the items when time is up."""
    if timeout_s is None:
        yield
        return
    timer = loop.call_later(timeout_s, items.put_nowait, timeout_error(timeout_s))
    try:
        yield
    finally:
        timer.cancel()


async def submit_in_thread(submit: Callable[[], C]) -> C:
    """Submit in a thread: tokenising a long prompt would hold up every other client."""
    submitting = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        # The thread cannot be stopped, so its handle may come when nobody waits for it any more.
        submitting.add_done_callback(_cancel)
        raise


def _cancel(submitting: asyncio.Future[C]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
