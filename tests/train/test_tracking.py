"""The tracked run of a training: one run across interruptions, failed on an error."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from llmctl.monitor.read.runs import open_runs
from tests.train.conftest import OnForward, PlanFinetune, RunFinetune, raise_signal_at


@pytest.fixture(autouse=True)
def tracking_store(own_store: None, empty_store: Path, tmp_path: Path) -> None:  # noqa: ARG001  fixture order
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store")


@pytest.mark.slow
def test_a_stopped_and_resumed_training_is_one_run(
    run_finetune: RunFinetune, plan_finetune: PlanFinetune, tmp_path: Path
) -> None:
    short = {"max_steps": 5, "eval_every": 2}
    with pytest.raises(KeyboardInterrupt):
        run_finetune(raise_signal_at(3, signal.SIGINT), request={"track": True}, **short)
    with open_runs() as store:
        (run,) = store.runs()
        assert run.status == "killed"
    report = run_finetune(request={"track": True, "resume": True})
    assert report.run_id == run.run_id
    with open_runs() as store:
        (run,) = store.runs()
        curves = store.curves(run.run_id)
    assert run.status == "finished"
    assert run.key_metric == "eval/loss"
    assert [point.step for point in curves["train/loss"]] == [1, 2, 3, 4, 5]
    assert {point.step for point in curves["eval/loss"]} == {0, 2, 4, 5}
    for name in ("train/learning_rate", "train/grad_norm", "train/tokens_per_s", "sys/memory_gb"):
        assert len(curves[name]) == 5
    assert run.metrics["sys/predicted_memory_gb"] > 0
    assert run.params["rank"] == "4"
    (data,) = run.datasets
    assert (data.name, data.rows, data.context) == ("rows", 48, "training")
    provenance = json.loads((tmp_path / "out" / "llmctl.json").read_text())
    assert provenance["run_id"] == run.run_id
    assert provenance["model_id"] == run.model_id
    assert provenance["model_id"]
    again = plan_finetune(output=tmp_path / "again", request={"from_run": run.run_id[:8]})
    assert again.steps == report.steps
    assert {one.origin for one in again.settings if one.name == "rank"} == {f"run {run.run_id[:8]}"}


@pytest.mark.slow
def test_a_training_that_raises_is_a_failed_run(
    run_finetune: RunFinetune, on_forward: OnForward
) -> None:
    def fail(_: int) -> float:
        raise RuntimeError("a bug")

    on_forward(fail)
    with pytest.raises(RuntimeError):
        run_finetune(request={"track": True})
    with open_runs() as store:
        (run,) = store.runs()
    assert run.status == "failed"
    assert "a bug" in run.error
