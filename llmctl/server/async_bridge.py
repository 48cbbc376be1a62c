"""Bridge between the engine's threads and the event loop, with deadlines and cancellation."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from llmctl.engine.base import BaseEngine
from llmctl.engine.stream import StreamItem
from llmctl.errors import EngineStoppedError, LlmctlError, RequestTimeoutError
from llmctl.types import GenerationChunk, GenerationRequest

T = TypeVar("T")


class Cancellable(Protocol):
    """Handle of work that the engine has queued."""

    def cancel(self) -> object: ...


C = TypeVar("C", bound=Cancellable)


def ignore_accepted() -> None:
    """Do nothing when the engine has accepted a request."""


async def stream_chunks(
    engine: BaseEngine,
    request: GenerationRequest,
    timeout_s: float | None = None,
    on_accepted: Callable[[], None] = ignore_accepted,
) -> AsyncGenerator[GenerationChunk, None]:
    """Submit the request and yield its chunks. Closing the generator cancels the request.

    Args:
        timeout_s: seconds from the submission to the last chunk; `None` sets no limit.
        on_accepted: called once, in the event loop, when the engine has checked the request and
            queued it.

    Raises:
        LlmctlError: the engine refused the request or it failed.
        RequestTimeoutError: it has not ended after `timeout_s` seconds.
        EngineStoppedError: it ended before the reply was complete.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[StreamItem] = asyncio.Queue()

    def post(item: StreamItem) -> None:
        # The loop may close while the engine thread still posts; raising would end that thread.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    submit = partial(engine.submit, request)
    with _deadline(loop, items, timeout_s), await submit_in_thread(submit) as stream:
        on_accepted()
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
    """Return the result of scoring or embedding, without holding a thread while it is computed.

    Cancelling this coroutine cancels the work.

    Args:
        submit: queues the work at the engine; called in a thread.
        timeout_s: seconds from the submission to the result; `None` sets no limit.

    Raises:
        LlmctlError: the engine refused the work or it failed.
        RequestTimeoutError: it has not ended after `timeout_s` seconds.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(await submit_in_thread(submit))
    except TimeoutError as error:
        raise timeout_error(timeout_s) from error


def timeout_error(timeout_s: float | None) -> RequestTimeoutError:
    """Return the error of a request that took longer than the server's `--request-timeout`."""
    return RequestTimeoutError(
        f"The reply took longer than this server's limit of {timeout_s:g} seconds.",
        hint="request fewer tokens, or try again when the server is less busy",
    )


@contextmanager
def _deadline(
    loop: asyncio.AbstractEventLoop, items: asyncio.Queue[StreamItem], timeout_s: float | None
) -> Iterator[None]:
    """Put a timeout error into the queue after `timeout_s` seconds."""
    if timeout_s is None:
        yield
        return
    timer = loop.call_later(timeout_s, items.put_nowait, timeout_error(timeout_s))
    try:
        yield
    finally:
        timer.cancel()


async def submit_in_thread(submit: Callable[[], C]) -> C:
    """Submit work in a thread, because tokenizing a long prompt would block the event loop."""
    submitting = asyncio.ensure_future(asyncio.to_thread(submit))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        # The thread cannot be stopped, so its handle may arrive after the request has gone.
        submitting.add_done_callback(_cancel)
        raise


def _cancel(submitting: asyncio.Future[C]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


async def cancel_on_disconnect(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Return the result of `work`; cancel it if the client disconnects first.

    The request body must have been read before.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
