"""Interruption and resume: a resumed run ends like one without interruption."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.train.samples import SampleLog
from llmctl.types import TrainEvent, TrainStep
from tests.train.conftest import (
    DROPOUT,
    EventRecorder,
    FinishedRun,
    RunFinetune,
    raise_signal_at,
)


class PowerFailure(BaseException):
    """Ends a run at once, without saving."""


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved"), [(3, True), (5, False)])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    run_finetune: RunFinetune, dropout_run: FinishedRun, tmp_path: Path, step: int, saved: bool
) -> None:
    whole, second = dropout_run.recorder, EventRecorder()
    first = raise_signal_at(step, signal.SIGINT)
    if not saved:

        def fail(event: TrainEvent) -> None:
            if isinstance(event, TrainStep) and event.step == step:
                raise PowerFailure

        first.on_event = fail
    with pytest.raises(KeyboardInterrupt if saved else PowerFailure):
        run_finetune(first, **DROPOUT)
    if saved:
        assert f"stopped after step {step}, which is saved" in first.notes
        assert f"--resume --output {tmp_path / 'out'}" in first.notes
    report = run_finetune(second, request={"resume": True})
    first_step = step + 1 if saved else 5  # after checkpoint 4
    assert list(second.losses) == list(range(first_step, 11))
    for number, loss in second.losses.items():
        assert loss == pytest.approx(whole.losses[number], abs=1e-5)
    assert second.evals[10] == pytest.approx(whole.evals[10], abs=1e-5)
    assert [number for number, _ in report.losses] == list(range(1, 11))
    assert dict(report.eval_losses).keys() == whole.evals.keys()
    assert SampleLog(tmp_path / "out").read().keys() == whole.evals.keys()


@pytest.mark.slow
def test_a_run_stopped_in_its_last_evaluation_is_evaluated_and_not_trained_on(
    run_finetune: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = EventRecorder(), EventRecorder()
    clock, offset = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + offset)

    def stop(event: TrainEvent) -> None:
        nonlocal offset
        if isinstance(event, TrainStep) and event.step == 3:
            offset = 1000.0
            signal.raise_signal(signal.SIGINT)

    first.on_event = stop
    with pytest.raises(KeyboardInterrupt):
        run_finetune(first, max_steps=3, eval_every=3)  # within an epoch
    assert 3 not in first.evals
    offset = 0.0
    report = run_finetune(second, request={"resume": True})
    assert second.losses == {}
    assert second.evals.keys() == {3}
    assert report.steps == report.best_step == 3
    assert report.tokens_per_s > 0
    assert 1000 < report.seconds < 2000  # of both commands


def mark_unfinished(folder: Path) -> None:
    """Leave a run as a power failure between its last step and its end does."""
    run_lock = json.loads((folder / "run.lock.json").read_text())
    (folder / "run.lock.json").write_text(json.dumps(run_lock | {"finished": False}))


def test_sigterm_saves_and_exits_with_its_own_code(run_finetune: RunFinetune) -> None:
    recorder = raise_signal_at(2, signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_finetune(recorder)
    assert ended.value.code == 143
    assert "step 2, which is saved" in recorder.notes


@pytest.mark.slow
def test_a_run_is_resumed_only_with_its_own_settings_and_data(
    run_finetune: RunFinetune, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_finetune(raise_signal_at(1, signal.SIGINT))
    with pytest.raises(ConfigError, match="rank is 8, and the run has 4"):
        run_finetune(request={"resume": True}, rank=8)
    rows.write_text("\n".join(rows.read_text().splitlines()[:-1]))
    with pytest.raises(ConfigError, match="the data was"):
        run_finetune(request={"resume": True})
    with pytest.raises(ConfigError, match="no run in"):
        run_finetune(request={"resume": True}, output=tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_finished_run_is_not_resumed(
    run_finetune: RunFinetune, finished_run: FinishedRun, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_run.folder, tmp_path / "out"))
    with pytest.raises(ConfigError, match="is finished"):
        run_finetune(request={"resume": True})
    mark_unfinished(out)
    again = EventRecorder()
    assert run_finetune(again, request={"resume": True}).losses == finished_run.report.losses
    assert again.losses == {}


@pytest.mark.slow
def test_early_stopping_keeps_the_best_weights(run_finetune: RunFinetune, tmp_path: Path) -> None:
    recorder, again = EventRecorder(), EventRecorder()
    report = run_finetune(
        recorder, learning_rate=0.3, max_grad_norm=0, eval_every=1, patience=2, epochs=9
    )
    assert report.stopped_early
    assert report.best_step == min(recorder.evals.keys() - {0}, key=recorder.evals.__getitem__)
    assert report.steps == report.best_step + 2
    out = tmp_path / "out"
    best = out / f"checkpoint-{report.best_step}" / "adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == best.read_bytes()
    mark_unfinished(out)
    resumed = run_finetune(again, request={"resume": True})
    assert again.losses == again.evals == {}
    assert (resumed.steps, resumed.best_step) == (report.steps, report.best_step)
    assert resumed.stopped_early
