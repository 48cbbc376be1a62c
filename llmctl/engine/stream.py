"""The stream of one request's chunks, from the engine thread to a thread or an event loop."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Self

from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.types import (
    Choice,
    FinishReason,
    GenerationChunk,
    GenerationResult,
    TokenLogprob,
    ToolCall,
    Usage,
)

_log = logging.getLogger(__name__)

StreamItem = GenerationChunk | LlmctlError | None
"""A chunk, the error that ended the request, or `None` at its end."""


class GenerationStream:
    """The handle of one request in flight.

    The engine calls `put`, `fail` and `finish`. The owner iterates or listens, and may call
    `cancel` at any time from any thread. After the end (an error or `None`) nothing is delivered.
    As a context manager it cancels at exit, which has no effect once the request has ended.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._ready = threading.Condition()
        self._items: deque[StreamItem] = deque()
        self._listener: Callable[[StreamItem], None] | None = None
        self._on_end: Callable[[GenerationStream], None] = lambda _: None
        self._cancelled = False
        self._ended = False

    def put(self, chunk: GenerationChunk) -> None:
        """Deliver a chunk. Engine side."""
        self._deliver(chunk)

    def fail(self, error: LlmctlError) -> None:
        """End the request with an error. Engine side."""
        self._deliver(error)

    def finish(self) -> None:
        """End the request. Engine side; safe to call again."""
        self._deliver(None)

    def on_end(self, call: "Callable[[GenerationStream], None]") -> None:
        """Call `call` in the engine thread after the last item is delivered. Engine side."""
        self._on_end = call

    def _deliver(self, item: StreamItem) -> None:
        # The lock also orders items against `listen`, which passes on the queued items first.
        with self._ready:
            if self._ended:
                return
            self._ended = not isinstance(item, GenerationChunk)
            if self._listener is not None:
                self._call_listener(self._listener, item)
            else:
                self._items.append(item)
                self._ready.notify_all()
        if self._ended:
            self._on_end(self)

    @property
    def cancelled(self) -> bool:
        """Whether the owner has cancelled; the engine drops the request at its next step."""
        return self._cancelled

    @property
    def ended(self) -> bool:
        """Whether the engine has delivered its last item."""
        return self._ended

    def cancel(self) -> None:
        """Ask the engine to stop. Chunks made before that are still delivered, then the end."""
        self._cancelled = True

    def listen(self, listener: Callable[[StreamItem], None]) -> None:
        """Call `listener` with every queued and every further item.

        It is called in the engine thread and must not block: an event loop passes a function that
        uses `call_soon_threadsafe`. If it raises, the request is cancelled.
        """
        with self._ready:
            ended_before = self._ended
            while self._items:
                self._call_listener(listener, self._items.popleft())
            self._listener = listener
            failed = self._ended and not ended_before
        if failed:
            self._on_end(self)

    def _call_listener(self, listener: Callable[[StreamItem], None], item: StreamItem) -> None:
        try:
            listener(item)
        except Exception:
            # The engine thread serves other requests too, so the error must not reach it.
            _log.exception("the listener of request %s failed", self.request_id)
            self._cancelled = self._ended = True

    def __iter__(self) -> Iterator[GenerationChunk]:
        """Yield chunks as they arrive; raise the error that ended the request."""
        while True:
            with self._ready:
                while not self._items:
                    # Windows delivers Ctrl-C only between waits, so each wait has a limit.
                    self._ready.wait(timeout=0.5)
                item = self._items.popleft()
            if item is None:
                return
            if isinstance(item, LlmctlError):
                raise item
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def collect_result(chunks: Iterator[GenerationChunk] | GenerationStream) -> GenerationResult:
    """Join the chunks of one request into its result. Raises as the stream and `result` do."""
    accumulator = ResultAccumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    return accumulator.result()


class ResultAccumulator:
    """Joins chunks that arrive one by one, for callers that cannot iterate over a stream."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._reasoning: dict[int, list[str]] = {}
        self._calls: dict[int, list[ToolCall]] = {}
        self._reasons: dict[int, FinishReason] = {}
        self._usage: Usage | None = None

    def add(self, chunk: GenerationChunk) -> None:
        self._texts.setdefault(chunk.index, []).append(chunk.text)
        self._logprobs.setdefault(chunk.index, []).extend(chunk.logprobs)
        self._reasoning.setdefault(chunk.index, []).append(chunk.reasoning)
        calls = self._calls.setdefault(chunk.index, [])
        for call in chunk.tool_calls:
            if calls and calls[-1].id == call.id:
                calls[-1] = replace(call, arguments=calls[-1].arguments + call.arguments)
            else:
                calls.append(call)
        if chunk.finish_reason is not None:
            self._reasons[chunk.index] = chunk.finish_reason
        if chunk.usage is not None:
            self._usage = chunk.usage

    def result(self) -> GenerationResult:
        """Return the result. Raises `EngineStoppedError` if a choice or the usage is missing."""
        if self._usage is None or self._reasons.keys() != self._texts.keys():
            raise EngineStoppedError("the request was cancelled before the reply was complete")
        return GenerationResult(
            choices=tuple(
                Choice(
                    "".join(self._texts[i]),
                    self._reasons[i],
                    tuple(self._logprobs[i]),
                    "".join(self._reasoning[i]),
                    tuple(self._calls[i]),
                )
                for i in sorted(self._texts)
            ),
            usage=self._usage,
        )
