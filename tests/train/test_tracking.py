"""What a training leaves in the tracking store, and that it is one run from beginning to end."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from llmctl.monitor.read.runs import open_runs
from llmctl.types import TrainEvent, TrainStep
from tests.train.conftest import EventRecorder, RunFinetune


@pytest.fixture(autouse=True)
def made_before(own_store: None, empty_store: Path, tmp_path: Path) -> None:  # noqa: ARG001
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store")


def test_a_run_that_was_stopped_and_resumed_is_one_run(teach: RunFinetune, tmp_path: Path) -> None:
    watched = EventRecorder()

    def stop(event: TrainEvent) -> None:
        if isinstance(event, TrainStep) and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    watched.on_event = stop
    with pytest.raises(KeyboardInterrupt):
        teach(watched, request={"track": True})
    with open_runs() as store:
        (run,) = store.runs()
        assert run.status == "killed"
    report = teach(request={"track": True, "resume": True})
    assert report.run_id == run.run_id
    with open_runs() as store:
        (run,) = store.runs()
        curves = store.curves(run.run_id)
    assert run.status == "finished"
    assert run.key_metric == "eval/loss"
    assert [point.step for point in curves["train/loss"]] == list(range(1, 11))
    assert {point.step for point in curves["eval/loss"]} == {0, 4, 8, 10}
    for name in ("train/learning_rate", "train/grad_norm", "train/tokens_per_s", "sys/memory_gb"):
        assert len(curves[name]) == 10
    assert run.metrics["sys/predicted_memory_gb"] > 0
    assert run.params["rank"] == "4"
    (data,) = run.datasets
    assert (data.name, data.rows, data.context) == ("rows", 48, "training")
    note = json.loads((tmp_path / "out" / "llmctl.json").read_text())
    assert note["run_id"] == run.run_id
    assert note["model_id"] == run.model_id
    assert note["model_id"]
    again = EventRecorder()
    teach(again, output=tmp_path / "again", request={"from_run": run.run_id[:8]})
    assert tuple(again.losses.items()) == report.losses


def test_a_training_that_fails_is_a_failed_run(
    teach: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmctl.train.trainer import SftTrainer

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(SftTrainer, "compute_loss", broken)
    with pytest.raises(RuntimeError):
        teach(request={"track": True})
    with open_runs() as store:
        (run,) = store.runs()
    assert run.status == "failed"
    assert "a bug of ours" in run.error
