"""The engine thread: the only one that runs the model, one forward pass after the other."""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from llmctl.engine.batching.executor import Executor
from llmctl.engine.batching.forward.lora import LoraAdapter
from llmctl.engine.batching.scoring import LogprobsFn, TokenizedContinuation
from llmctl.engine.batching.sequence import ScheduledSequence as RowSequence
from llmctl.engine.error_translation import translate_error
from llmctl.errors import EngineFailedError, EngineStoppedError, LlmctlError
from llmctl.types import EngineState, Score

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _PrefillTask(NamedTuple):
    """Texts that are read without a reply, to score or embed them, a forward pass at a time."""

    steps: Generator[None, None, Any]
    result: Future[Any]
    adapters: Collection[str | None]


class _AdapterChange(NamedTuple):
    """An adapter that comes or, `None`, goes as soon as nothing runs under it."""

    key: str
    adapter: LoraAdapter | None
    done: Future[None]


class EngineWorker:
    """Takes work from any thread and does it in its own, which starts at once."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._inbox: SimpleQueue[list[RowSequence] | _PrefillTask | _AdapterChange | None] = (
            SimpleQueue()
        )
        self._readings: deque[_PrefillTask] = deque()
        self._changes: list[_AdapterChange] = []
        self._last_step = time.monotonic()
        self._thread = threading.Thread(target=self._live, name="llmctl-engine", daemon=True)
        self._thread.start()

    def add(self, sequences: list[RowSequence]) -> None:
        """Put the choices of a request in line."""
        self._inbox.put(sequences)

    def score(
        self, asked: Sequence[tuple[Sequence[TokenizedContinuation], str | None, LogprobsFn]]
    ) -> Future[list[tuple[Score, ...]]]:
        """Score continuations, of one context after the other, between the steps of replies.

        Whoever cancels a `Future` of this or of `embed` ends the work on it at the next step.
        """
        return self._read(
            [self._executor.score(*one) for one in asked], {adapter for _, adapter, _ in asked}
        )

    def embed(
        self, texts: Sequence[Sequence[int]], adapter: str | None
    ) -> Future[list[tuple[float, ...]]]:
        """Embed texts between the steps of replies."""
        return self._read([self._executor.embed(ids, adapter) for ids in texts], {adapter})

    def _read(
        self, parts: Sequence[Generator[None, None, T]], adapters: Collection[str | None]
    ) -> Future[list[T]]:
        reading = _PrefillTask(_one_by_one(parts), Future(), adapters)
        self._inbox.put(reading)
        return reading.result

    @property
    def reading_count(self) -> int:
        """Requests to score or embed that have not ended."""
        return len(self._readings)

    def change_adapter(self, key: str, adapter: LoraAdapter | None) -> Future[None]:
        """Hold an adapter under a new key, or with `None` let it go once nobody needs it."""
        change = _AdapterChange(key, adapter, Future())
        change.done.set_running_or_notify_cancel()  # it cannot be called back
        self._inbox.put(change)
        return change.done

    def state(self) -> EngineState:
        """Say how the engine is doing. Any thread may ask."""
        state = self._executor.state()
        # Readings take turns: one is at work.
        running = state.running + min(self.reading_count, 1)
        waiting = state.waiting + max(self.reading_count - 1, 0)
        busy = running or waiting
        idle_s = time.monotonic() - self._last_step if busy else 0.0
        # An executor whose step is a whole reply knows better.
        idle_s = min(idle_s, state.last_step_age_s or idle_s)
        alive = self._thread.is_alive()
        return replace(state, alive=alive, last_step_age_s=idle_s, running=running, waiting=waiting)

    def stop(self) -> None:
        """End everything that is still in line with `EngineStoppedError`, and the thread.

        Nothing may be added any more.
        """
        self._inbox.put(None)
        self._thread.join()

    def _live(self) -> None:
        """Run until `stop`, whatever happens: nobody may wait for an answer that never comes."""
        while True:
            try:
                self._run()
                return
            except BaseException as error:
                _log.critical("the engine thread broke down and begins anew", exc_info=error)
                self._end_all(EngineFailedError(f"the engine broke down: {error}"))

    def _run(self) -> None:
        executor = self._executor
        while self._take_in():
            self._last_step = time.monotonic()
            try:
                if executor.busy:
                    executor.step()
                self._drop_cancelled()
                if self._readings:
                    self._advance()
                if self._changes:
                    self._make_changes()
            except Exception as error:
                # A bug of ours. Whoever was running learns of it; the thread lives for the next.
                _log.exception("a step failed")
                executor.fail_all(error)
        self._end_all(EngineStoppedError("the engine was closed before the reply ended"))

    def _end_all(self, error: LlmctlError) -> None:
        self._executor.fail_all(error)
        for reading in self._readings:
            if reading.result.set_running_or_notify_cancel():
                reading.result.set_exception(error)
        for change in self._changes:
            change.done.set_exception(error)
        self._readings.clear()
        self._changes.clear()

    def _take_in(self) -> bool:
        """Take what has been asked since the last step, waiting if there is nothing else to do.

        Returns:
            Whether to go on.
        """
        while True:
            idle = not (self._executor.busy or self._readings or self._changes)
            try:
                item = self._inbox.get(block=idle)
            except Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _PrefillTask):
                self._readings.append(item)
            elif isinstance(item, _AdapterChange):
                self._changes.append(item)
            else:
                for sequence in item:
                    self._executor.add(sequence)

    def _drop_cancelled(self) -> None:
        for reading in [r for r in self._readings if r.result.cancelled()]:
            self._readings.remove(reading)
            reading.steps.close()  # its room in the cache goes back

    def _advance(self) -> None:
        steps, result, _ = self._readings[0]
        value, failure = None, None
        try:
            next(steps)
            return
        except StopIteration as end:
            value = end.value
        except Exception as error:
            failure = translate_error(error)
        self._readings.popleft()
        if not result.set_running_or_notify_cancel():
            return
        if failure is None:
            result.set_result(value)
        else:
            result.set_exception(failure)

    def _make_changes(self) -> None:
        read = {adapter for reading in self._readings for adapter in reading.adapters}
        self._changes = [c for c in self._changes if c.key in read or not self._made(c)]

    def _made(self, change: _AdapterChange) -> bool:
        """Make a change, if it can be made now; return whether it was answered."""
        key, adapter, done = change
        try:
            if adapter is not None:
                self._executor.put_adapter(key, adapter)
            elif not self._executor.drop_adapter(key):
                return False
        except Exception as error:
            if adapter is not None:
                self._executor.drop_adapter(key)
            done.set_exception(translate_error(error))
        else:
            done.set_result(None)
        return True


def _one_by_one(parts: Sequence[Generator[None, None, T]]) -> Generator[None, None, list[T]]:
    done = []
    for part in parts:
        done.append((yield from part))
    return done
