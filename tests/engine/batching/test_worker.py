"""The engine thread outlives whatever happens in it, and nobody waits in vain."""

from pathlib import Path

import pytest

from llmctl.engine.batching.sequence import Sequence
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import EngineFailedError
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams


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
            patch.setattr(Sequence, "pending", property(_break_down))
            for stream in streams:
                with pytest.raises(EngineFailedError, match="broke down"):
                    list(stream)
        assert "begins anew" in caplog.text
        assert engine.state().alive
        sampling = SamplingParams(max_new_tokens=3, ignore_eos=True)
        again = engine.generate(GenerationRequest(prompt="ab", sampling=sampling))
        assert again.usage.completion_tokens == 3


def _break_down(_: Sequence) -> int:
    raise Breakdown


def test_an_engine_says_what_runs_and_what_it_holds(tiny: HFRunner) -> None:
    with tiny.submit(endless("hello")) as stream:
        next(iter(stream))
        state = tiny.state()
        assert state.alive
        assert state.running == 1
        assert 5 < state.kv_used_tokens <= state.kv_budget_tokens
        assert state.idle_s < 5
    list(stream)
    assert tiny.generate(GenerationRequest(prompt="a")).usage.prompt_tokens
    assert tiny.state().running == 0
    assert tiny.state().idle_s == 0
