"""The engine thread: crashes, its state, cancelled tasks and adapter changes."""

from collections.abc import Iterator
from typing import Any

import pytest

from llmctl.engine.batching.worker import EngineWorker
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import EngineFailedError, EngineStoppedError
from llmctl.types import EngineState, GenerationRequest, SamplingParams
from tests.engine.batching.scripted import ScriptedRequest, exactly, make_scheduler
from tests.server.servers import wait_until


def endless(prompt: str) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=400, ignore_eos=True)
    return GenerationRequest(prompt=prompt, sampling=sampling)


def test_after_a_crash_the_thread_fails_all_requests_and_serves_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler, _, _ = make_scheduler(crash_at=4)
    worker = EngineWorker(scheduler)
    running = [ScriptedRequest([first], exactly(50)) for first in (1, 2)]
    for request in running:
        worker.add(request.sequences())
    assert wait_until(lambda: all(request.ends for request in running))
    for request in running:
        assert isinstance(request.error, EngineFailedError)
        assert "crashed" in str(request.error)
    assert "restarts" in caplog.text
    assert worker.state().alive
    after = ScriptedRequest([1], exactly(50))
    worker.add(after.sequences())
    assert wait_until(lambda: after.ends == 1)
    assert after.texts == after.expected()
    worker.stop()


def test_the_state_counts_running_requests_and_cached_tokens(tiny: HFRunner) -> None:
    with tiny.submit(endless("hello")) as stream:
        next(iter(stream))
        state = tiny.state()
        assert state.alive
        assert state.running == 1
        assert 5 < state.kv_used_tokens <= state.kv_budget_tokens
        assert state.last_step_age_s < 5
    list(stream)
    assert tiny.generate(GenerationRequest(prompt="a")).usage.prompt_tokens
    assert tiny.state().running == 0
    assert tiny.state().last_step_age_s == 0


class EndlessExecutor:
    """An executor that never finishes embedding a text."""

    busy = False

    def __init__(self) -> None:
        self.closed: list[list[int]] = []

    def state(self) -> EngineState:
        return EngineState(True, 0.0, running=0, waiting=0, max_rows=1)

    def embed(self, ids: list[int], _: str | None) -> Iterator[None]:
        try:
            while True:
                yield
        finally:
            self.closed.append(ids)

    def fail_all(self, _: BaseException) -> None: ...

    def drop_adapter(self, _: str) -> bool:
        return True


def test_a_task_is_counted_until_it_is_cancelled() -> None:
    executor: Any = EndlessExecutor()
    worker = EngineWorker(executor)

    def counted() -> tuple[int, int, int]:
        state = worker.state()
        return worker.task_count, state.running, state.waiting

    first, second, third = (worker.embed([[i], [i]], None) for i in range(3))
    assert wait_until(lambda: counted() == (3, 1, 2))
    second.cancel()
    assert wait_until(lambda: counted() == (2, 1, 1))
    assert executor.closed == []  # it never started
    first.cancel()
    assert wait_until(lambda: counted() == (1, 1, 0))
    assert executor.closed == [[0]]
    worker.stop()
    with pytest.raises(EngineStoppedError):
        third.result()


def test_an_adapter_change_cannot_be_cancelled() -> None:
    executor: Any = EndlessExecutor()
    worker = EngineWorker(executor)
    task = worker.embed([[1]], "key")
    change = worker.change_adapter("key", None)
    assert not change.cancel()
    assert not change.done()
    task.cancel()
    change.result(timeout=10)
    worker.stop()
