"""The engine thread outlives whatever happens in it, and nobody waits in vain."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.batching.sequence import ScheduledSequence
from llmctl.engine.batching.worker import EngineWorker
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import EngineFailedError, EngineStoppedError
from llmctl.types import EngineState, GenerationRequest, ModelSpec, SamplingParams
from tests.server.servers import wait_until


class Breakdown(BaseException):
    """What no `except Exception` catches."""


def endless(prompt: str) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=400, ignore_eos=True)
    return GenerationRequest(prompt=prompt, sampling=sampling)


def test_a_thread_that_breaks_down_answers_everybody_and_begins_anew(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with HFRunner(ModelSpec(str(tiny_folder), device="cpu")) as engine:
        engine.load()
        streams = [engine.submit(endless(prompt)) for prompt in ("ab", "cd")]
        assert next(iter(streams[0])).text is not None
        with monkeypatch.context() as patch:
            # What happens inside a step is not ours to foresee; the property is read in each.
            patch.setattr(ScheduledSequence, "pending", property(_break_down))
            for stream in streams:
                with pytest.raises(EngineFailedError, match="broke down"):
                    list(stream)
        assert "begins anew" in caplog.text
        assert engine.state().alive
        sampling = SamplingParams(max_new_tokens=3, ignore_eos=True)
        again = engine.generate(GenerationRequest(prompt="ab", sampling=sampling))
        assert again.usage.completion_tokens == 3


def _break_down(_: ScheduledSequence) -> int:
    raise Breakdown


def test_an_engine_says_what_runs_and_what_it_holds(tiny: HFRunner) -> None:
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


class EndlessReader:
    """An executor that comes to no end with a text."""

    busy = False

    def __init__(self) -> None:
        self.given_up: list[list[int]] = []

    def state(self) -> EngineState:
        return EngineState(True, 0.0, running=0, waiting=0, max_rows=1)

    def embed(self, ids: list[int], _: str | None) -> Iterator[None]:
        try:
            while True:
                yield
        finally:
            self.given_up.append(ids)

    def fail_all(self, _: BaseException) -> None: ...

    def drop_adapter(self, _: str) -> bool:
        return True


def test_a_reading_counts_until_it_is_cancelled_and_then_leaves_nothing() -> None:
    executor: Any = EndlessReader()
    worker = EngineWorker(executor)

    def counted() -> tuple[int, int, int]:
        state = worker.state()
        return worker.reading_count, state.running, state.waiting

    first, second, third = (worker.embed([[i], [i]], None) for i in range(3))
    assert wait_until(lambda: counted() == (3, 1, 2))
    second.cancel()
    assert wait_until(lambda: counted() == (2, 1, 1))
    assert executor.given_up == []  # it was never begun
    first.cancel()
    assert wait_until(lambda: counted() == (1, 1, 0))
    assert executor.given_up == [[0]]
    worker.stop()
    with pytest.raises(EngineStoppedError):
        third.result()


def test_a_change_of_adapters_is_made_whoever_has_stopped_waiting() -> None:
    executor: Any = EndlessReader()
    worker = EngineWorker(executor)
    reading = worker.embed([[1]], "key")
    change = worker.change_adapter("key", None)
    assert not change.cancel()
    assert not change.done()
    reading.cancel()
    change.result(timeout=10)
    worker.stop()
