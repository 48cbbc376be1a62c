"""The engine thread, the only one that runs the model."""

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
from llmctl.engine.batching.sequence import ScheduledSequence
from llmctl.engine.error_translation import translate_error
from llmctl.errors import EngineFailedError, EngineStoppedError, LlmctlError
from llmctl.types import EngineState, Score

T = TypeVar("T")
_log = logging.getLogger(__name__)


class _PrefillTask(NamedTuple):
    """A request to score or embed texts, run one forward pass at a time."""

    steps: Generator[None, None, Any]
    result: Future[Any]
    adapters: Collection[str | None]


class _AdapterChange(NamedTuple):
    """An adapter to add or, with `None`, to remove once no sequence uses it."""

    key: str
    adapter: LoraAdapter | None
    done: Future[None]


class EngineWorker:
    """Takes work from any thread and does it in its own, which the constructor starts."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._inbox: SimpleQueue[list[ScheduledSequence] | _PrefillTask | _AdapterChange | None] = (
            SimpleQueue()
        )
        self._tasks: deque[_PrefillTask] = deque()
        self._changes: list[_AdapterChange] = []
        self._last_step = time.monotonic()
        self._thread = threading.Thread(target=self._run_forever, name="llmctl-engine", daemon=True)
        self._thread.start()

    def add(self, sequences: list[ScheduledSequence]) -> None:
        """Queue the choices of a request."""
        self._inbox.put(sequences)

    def score(
        self, requests: Sequence[tuple[Sequence[TokenizedContinuation], str | None, LogprobsFn]]
    ) -> Future[list[tuple[Score, ...]]]:
        """Score continuations, one context after the other, between decoding steps.

        Cancelling the future of this or of `embed` ends its work at the next step.
        """
        return self._submit(
            [self._executor.score(*request) for request in requests],
            {adapter for _, adapter, _ in requests},
        )

    def embed(
        self, texts: Sequence[Sequence[int]], adapter: str | None
    ) -> Future[list[tuple[float, ...]]]:
        """Embed texts between decoding steps."""
        return self._submit([self._executor.embed(ids, adapter) for ids in texts], {adapter})

    def _submit(
        self, parts: Sequence[Generator[None, None, T]], adapters: Collection[str | None]
    ) -> Future[list[T]]:
        task = _PrefillTask(_run_in_order(parts), Future(), adapters)
        self._inbox.put(task)
        return task.result

    @property
    def task_count(self) -> int:
        """Requests to score or embed that have not ended."""
        return len(self._tasks)

    def change_adapter(self, key: str, adapter: LoraAdapter | None) -> Future[None]:
        """Add an adapter under a new key or, with `None`, remove it once no sequence uses it."""
        change = _AdapterChange(key, adapter, Future())
        change.done.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        self._inbox.put(change)
        return change.done

    def state(self) -> EngineState:
        """Return the state of the engine. Thread-safe."""
        state = self._executor.state()
        # Tasks take turns: one of them is running.
        running = state.running + min(self.task_count, 1)
        waiting = state.waiting + max(self.task_count - 1, 0)
        age_s = time.monotonic() - self._last_step if running or waiting else 0.0
        # A step of the serial executor is a whole reply; it reports the age of its last token.
        age_s = min(age_s, state.last_step_age_s or age_s)
        alive = self._thread.is_alive()
        return replace(state, alive=alive, last_step_age_s=age_s, running=running, waiting=waiting)

    def stop(self) -> None:
        """End all queued work with `EngineStoppedError`, and the thread.

        Nothing may be added any more.
        """
        self._inbox.put(None)
        self._thread.join()

    def _run_forever(self) -> None:
        """Run until `stop`. After a crash answer all waiting requests and continue."""
        while True:
            try:
                self._loop()
                return
            except BaseException as error:
                _log.critical("the engine thread crashed and restarts", exc_info=error)
                self._end_all(EngineFailedError(f"the engine crashed: {error}"))

    def _loop(self) -> None:
        executor = self._executor
        while self._receive():
            self._last_step = time.monotonic()
            try:
                if executor.busy:
                    executor.step()
                self._drop_cancelled()
                if self._tasks:
                    self._step_task()
                if self._changes:
                    self._apply_changes()
            except Exception as error:
                # A bug in the engine: running requests fail, and the thread serves the next.
                _log.exception("an engine step failed")
                executor.fail_all(error)
        self._end_all(EngineStoppedError("the engine was closed before the reply ended"))

    def _end_all(self, error: LlmctlError) -> None:
        self._executor.fail_all(error)
        for task in self._tasks:
            if task.result.set_running_or_notify_cancel():
                task.result.set_exception(error)
        for change in self._changes:
            change.done.set_exception(error)
        self._tasks.clear()
        self._changes.clear()

    def _receive(self) -> bool:
        """Take new work from the inbox, blocking while there is nothing else to do.

        Returns:
            False after `stop`.
        """
        while True:
            idle = not (self._executor.busy or self._tasks or self._changes)
            try:
                item = self._inbox.get(block=idle)
            except Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _PrefillTask):
                self._tasks.append(item)
            elif isinstance(item, _AdapterChange):
                self._changes.append(item)
            else:
                for sequence in item:
                    self._executor.add(sequence)

    def _drop_cancelled(self) -> None:
        for task in [t for t in self._tasks if t.result.cancelled()]:
            self._tasks.remove(task)
            task.steps.close()  # releases its cache

    def _step_task(self) -> None:
        steps, result, _ = self._tasks[0]
        value, failure = None, None
        try:
            next(steps)
            return
        except StopIteration as end:
            value = end.value
        except Exception as error:
            failure = translate_error(error)
        self._tasks.popleft()
        if not result.set_running_or_notify_cancel():
            return
        if failure is None:
            result.set_result(value)
        else:
            result.set_exception(failure)

    def _apply_changes(self) -> None:
        in_use = {adapter for task in self._tasks for adapter in task.adapters}
        self._changes = [c for c in self._changes if c.key in in_use or not self._applied(c)]

    def _applied(self, change: _AdapterChange) -> bool:
        """Apply a change if it is possible now; return whether its future was resolved."""
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


def _run_in_order(parts: Sequence[Generator[None, None, T]]) -> Generator[None, None, list[T]]:
    results = []
    for part in parts:
        results.append((yield from part))
    return results
