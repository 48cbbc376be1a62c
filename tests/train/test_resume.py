"""A training that breaks off goes on to the very end that it would have had."""

import json
import signal
import time
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.train.samples import SampleLog
from llmctl.types import TrainEvent, TrainStep
from tests.train.conftest import EventRecorder, RunFinetune


class Broken(BaseException):
    """The power goes."""


@pytest.mark.parametrize(("step", "how"), [(3, "asked"), (5, "torn")])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    teach: RunFinetune, tmp_path: Path, step: int, how: str
) -> None:
    whole, first, second = EventRecorder(), EventRecorder(), EventRecorder()
    teach(whole, dropout=0.1, micro_batch_size=2, output=tmp_path / "whole")

    def stop(event: TrainEvent) -> None:
        if isinstance(event, TrainStep) and event.step == step:
            if how == "torn":
                raise Broken
            signal.raise_signal(signal.SIGINT)

    first.on_event = stop
    with pytest.raises(KeyboardInterrupt if how == "asked" else Broken):
        teach(first, dropout=0.1, micro_batch_size=2)
    if how == "asked":
        assert f"stopped after step {step}, which is saved" in first.notes
        assert "--resume" in first.notes
    report = teach(second, request={"resume": True})
    assert min(second.losses) == (step + 1 if how == "asked" else 4 * (step // 4) + 1)
    for number, loss in second.losses.items():
        assert loss == pytest.approx(whole.losses[number], abs=1e-5)
    assert second.evals[10] == pytest.approx(whole.evals[10], abs=1e-5)
    assert [number for number, _ in report.losses] == list(range(1, 11))
    assert dict(report.eval_losses).keys() == whole.evals.keys()
    assert SampleLog(tmp_path / "out").read().keys() == whole.evals.keys()


def test_a_run_that_is_stopped_in_its_last_measurement_is_measured_and_not_taught_on(
    teach: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = EventRecorder(), EventRecorder()
    real, late = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: real() + late)

    def stop(event: TrainEvent) -> None:
        nonlocal late
        if isinstance(event, TrainStep) and event.step == 3:
            late = 1000.0
            signal.raise_signal(signal.SIGINT)

    first.on_event = stop
    with pytest.raises(KeyboardInterrupt):
        teach(first, max_steps=3, eval_every=3)  # within an epoch
    assert 3 not in first.evals
    late = 0.0
    report = teach(second, request={"resume": True})
    assert second.losses == {}
    assert second.evals.keys() == {3}
    assert report.steps == report.best_step == 3
    assert report.tokens_per_s > 0
    assert 1000 < report.seconds < 2000  # both stretches


def set_back(folder: Path) -> None:
    """Leave a run as it is when the power goes between its last step and its end."""
    receipt = json.loads((folder / "run.lock.json").read_text())
    (folder / "run.lock.json").write_text(json.dumps(receipt | {"finished": False}))


def test_sigterm_saves_and_ends_with_its_own_exit_code(teach: RunFinetune) -> None:
    watched = EventRecorder()

    def stop(event: TrainEvent) -> None:
        if isinstance(event, TrainStep) and event.step == 2:
            signal.raise_signal(signal.SIGTERM)

    watched.on_event = stop
    with pytest.raises(SystemExit) as ended:
        teach(watched)
    assert ended.value.code == 143
    assert "step 2, which is saved" in watched.notes


def test_a_run_goes_on_only_with_its_own_settings_and_data(
    teach: RunFinetune, rows: Path, tmp_path: Path
) -> None:
    watched = EventRecorder()
    watched.on_event = lambda event: (
        signal.raise_signal(signal.SIGINT) if isinstance(event, TrainStep) else None
    )
    with pytest.raises(KeyboardInterrupt):
        teach(watched)
    with pytest.raises(ConfigError, match="rank is 8, and the run has 4"):
        teach(request={"resume": True}, rank=8)
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]))
    with pytest.raises(ConfigError, match="the data was"):
        teach(request={"resume": True})
    with pytest.raises(ConfigError, match="no run in"):
        teach(request={"resume": True}, output=tmp_path / "elsewhere")


def test_a_finished_run_does_not_go_on(teach: RunFinetune, tmp_path: Path) -> None:
    done = teach(max_steps=1)
    with pytest.raises(ConfigError, match="is finished"):
        teach(request={"resume": True})
    set_back(tmp_path / "out")
    assert teach(request={"resume": True}).losses == done.losses


def test_early_stopping_keeps_the_best_weights(teach: RunFinetune, tmp_path: Path) -> None:
    watched = EventRecorder()
    report = teach(watched, learning_rate=0.3, max_grad_norm=0, eval_every=1, patience=2, epochs=9)
    assert report.stopped_early
    assert report.best_step == min(watched.evals.keys() - {0}, key=watched.evals.__getitem__)
    assert report.steps == report.best_step + 2
    out = tmp_path / "out"
    best = out / f"checkpoint-{report.best_step}" / "adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == best.read_bytes()
    set_back(out)
    again = EventRecorder()
    resumed = teach(again, request={"resume": True})
    assert again.losses == again.evals == {}
    assert (resumed.steps, resumed.best_step) == (report.steps, report.best_step)
    assert resumed.stopped_early
