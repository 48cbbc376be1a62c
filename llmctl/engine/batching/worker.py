"""The engine thread: the only one that runs the model, one forward pass after the other."""

import logging
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import NamedTuple

from llmctl.engine.batching.adapters import Adapter
from llmctl.engine.batching.executor import Executor
from llmctl.engine.batching.scoring import Pair
from llmctl.engine.batching.sequence import Sequence as RowSequence
from llmctl.engine.failures import as_ours
from llmctl.errors import EngineStoppedError
from llmctl.types import Score

_log = logging.getLogger(__name__)


class _Scoring(NamedTuple):
    """A score request, advanced a forward pass at a time."""

    steps: Generator[None, None, tuple[Score, ...]]
    result: Future[tuple[Score, ...]]
    adapter: str | None


class _AdapterChange(NamedTuple):
    """An adapter that comes or, `None`, goes as soon as nothing runs under it."""

    key: str
    adapter: Adapter | None
    done: Future[None]


class Worker:
    """Takes work from any thread and does it in its own, which starts at once."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._inbox: SimpleQueue[list[RowSequence] | _Scoring | _AdapterChange | None] = (
            SimpleQueue()
        )
        self._scorings: deque[_Scoring] = deque()
        self._changes: list[_AdapterChange] = []
        self._thread = threading.Thread(target=self._run, name="llmctl-engine", daemon=True)
        self._thread.start()

    def add(self, sequences: list[RowSequence]) -> None:
        """Put the choices of a request in line."""
        self._inbox.put(sequences)

    def score(self, pairs: Sequence[Pair], adapter: str | None) -> Future[tuple[Score, ...]]:
        """Score continuations between the steps of replies."""
        scoring = _Scoring(self._executor.score(pairs, adapter), Future(), adapter)
        self._inbox.put(scoring)
        return scoring.result

    def change_adapter(self, key: str, adapter: Adapter | None) -> Future[None]:
        """Hold an adapter under a new key, or with `None` let it go once nobody needs it."""
        change = _AdapterChange(key, adapter, Future())
        self._inbox.put(change)
        return change.done

    def stop(self) -> None:
        """End everything that is still in line with `EngineStoppedError`, and the thread.

        Nothing may be added any more.
        """
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        executor = self._executor
        while self._take_in():
            try:
                if executor.busy:
                    executor.step()
                if self._scorings:
                    self._advance()
                if self._changes:
                    self._make_changes()
            except Exception as error:
                # A bug of ours. Whoever was running learns of it; the thread lives for the next.
                _log.exception("a step failed")
                executor.fail_all(error)
        stopped = EngineStoppedError("the engine was closed before the reply ended")
        executor.fail_all(stopped)
        for scoring in self._scorings:
            scoring.result.set_exception(stopped)
        for change in self._changes:
            change.done.set_exception(stopped)

    def _take_in(self) -> bool:
        """Take what has been asked since the last step, waiting if there is nothing else to do.

        Returns:
            Whether to go on.
        """
        while True:
            idle = not (self._executor.busy or self._scorings or self._changes)
            try:
                item = self._inbox.get(block=idle)
            except Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _Scoring):
                self._scorings.append(item)
            elif isinstance(item, _AdapterChange):
                self._changes.append(item)
            else:
                for sequence in item:
                    self._executor.add(sequence)

    def _advance(self) -> None:
        steps, result, _ = self._scorings[0]
        try:
            next(steps)
            return
        except StopIteration as end:
            result.set_result(end.value)
        except Exception as error:
            result.set_exception(as_ours(error))
        self._scorings.popleft()

    def _make_changes(self) -> None:
        scored = {scoring.adapter for scoring in self._scorings}
        self._changes = [c for c in self._changes if c.key in scored or not self._made(c)]

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
            done.set_exception(as_ours(error))
        else:
            done.set_result(None)
        return True
