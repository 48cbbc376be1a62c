"""Whole runs: their results, and how they end when memory, disk or numbers fail."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import ConfigError, OutOfMemoryError
from llmctl.train.checkpoints import STATE_FILE, Checkpoints
from llmctl.train.stop import TrainingDivergedError
from llmctl.types import TrainEvent, TrainStep
from tests.adapters import save_trained_adapter
from tests.train.conftest import (
    CONSTANT,
    EventRecorder,
    FinishedRun,
    OnForward,
    RunFinetune,
)


def assert_same_losses(
    recorder: EventRecorder, expected: FinishedRun, steps: int, *, tolerance: float
) -> None:
    assert list(recorder.losses) == list(range(1, steps + 1))
    for step, loss in recorder.losses.items():
        assert loss == pytest.approx(expected.recorder.losses[step], abs=tolerance)


@pytest.mark.slow
def test_the_output_folder_is_an_adapter_that_the_engine_serves(finished_run: FinishedRun) -> None:
    from llmctl.engine.hf_runner import HFRunner
    from llmctl.engine.stream import collect_result
    from llmctl.types import GenerationRequest, Message, ModelSpec, SamplingParams

    report, folder = finished_run.report, finished_run.folder
    assert report.steps == finished_run.recorder.plan.steps == 10
    assert report.eval_losses[-1][1] < report.eval_losses[0][1]
    for name in ("adapter_model.safetensors", "llmctl.json", "README.md", "run.lock.json"):
        assert (folder / name).is_file()
    assert json.loads((folder / "llmctl.json").read_text())["template"]
    (sample,) = report.after
    with HFRunner(ModelSpec(str(folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        request = GenerationRequest(
            messages=(Message("user", sample.prompt),),
            sampling=SamplingParams(temperature=0, max_new_tokens=4),
        )
        served = collect_result(engine.submit(request)).choices[0]
        assert served.text.strip() == sample.reply


@pytest.mark.slow
def test_a_run_repeated_from_its_run_lock_has_equal_losses_to_the_bit(
    run_finetune: RunFinetune, dropout_run: FinishedRun
) -> None:
    again = EventRecorder()
    run_finetune(again, request={"from_run": str(dropout_run.folder)})
    assert again.losses == dropout_run.recorder.losses
    assert again.evals == dropout_run.recorder.evals
    assert "not the same run" not in again.notes


@pytest.mark.slow
def test_an_output_folder_is_overwritten_only_on_request(
    run_finetune: RunFinetune, finished_run: FinishedRun, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished_run.folder, tmp_path / "out"))
    kept = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="not empty") as refused:
        run_finetune(max_steps=1)
    assert "--overwrite" in refused.value.hint
    assert "--resume" in refused.value.hint
    assert (out / "adapter_model.safetensors").read_bytes() == kept
    run_finetune(max_steps=2, request={"overwrite": True})
    assert (out / "adapter_model.safetensors").read_bytes() != kept
    assert not (out / "checkpoint-10").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="does not hold a run"):
        run_finetune(request={"overwrite": True}, output=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


@pytest.mark.slow
def test_inputs_of_a_run_are_never_overwritten(
    run_finetune: RunFinetune,
    finished_run: FinishedRun,
    full_run: FinishedRun,
    rows: Path,
    tmp_path: Path,
) -> None:
    out = Path(shutil.copytree(finished_run.folder, tmp_path / "out"))
    inside = shutil.copy(rows, out / "rows.jsonl")
    base = Path(shutil.copytree(full_run.folder, tmp_path / "full"))
    save_trained_adapter(tmp_path / "on-it", base)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("[of]*/**/*")}
    refusals: dict[str, dict[str, object]] = {
        "--model .*/out is in the output folder": {"model": str(out / ".." / "out")},
        "--data .*/rows.jsonl is in": {"data": str(inside)},
        "--eval-data .*/rows.jsonl is in": {"eval_data": str(inside)},
        "the model .*/full is in": {"model": str(tmp_path / "on-it"), "output": base},
        "method full trains": {"model": str(tmp_path / "on-it"), "method": "full"},
    }
    for refusal, settings in refusals.items():
        with pytest.raises(ConfigError, match=refusal):
            run_finetune(request={"overwrite": True}, max_steps=1, **settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("[of]*/**/*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_losses(
    run_finetune: RunFinetune, finished_run: FinishedRun, on_forward: OnForward, step: int
) -> None:
    recorder = EventRecorder()

    def fit_one_row(rows: int) -> float:
        if rows > 1 and len(recorder.losses) + 1 >= step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 1.0

    on_forward(fit_one_row)
    report = run_finetune(recorder, **CONSTANT, max_steps=5)
    assert f"out of memory in step {step} with a micro-batch of 4" in recorder.notes
    assert "micro-batches of 2" in recorder.notes
    assert "the batch size stays 8" in recorder.notes
    assert [number for number, _ in report.losses] == [1, 2, 3, 4, 5]
    assert_same_losses(recorder, finished_run, 5, tolerance=1e-4)


@pytest.mark.slow
def test_memory_too_small_for_one_row_is_an_error_with_a_hint(
    run_finetune: RunFinetune, on_forward: OnForward
) -> None:
    def fit_nothing(_: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    on_forward(fit_nothing)
    with pytest.raises(OutOfMemoryError, match="with a micro-batch of 1") as failed:
        run_finetune(micro_batch_size=2, eval_fraction=0)
    assert "--gradient-checkpointing" in failed.value.hint


def test_a_nan_loss_stops_the_run_and_names_the_step_and_the_rows(
    run_finetune: RunFinetune, on_forward: OnForward
) -> None:
    recorder = EventRecorder()
    on_forward(lambda _: torch.nan if len(recorder.losses) == 3 else 1.0)
    with pytest.raises(TrainingDivergedError, match="loss is NaN at step 4") as failed:
        run_finetune(recorder, eval_every=2)
    assert "rows.jsonl:" in str(failed.value)
    assert "checkpoint-2" in str(failed.value)


def test_an_infinite_gradient_never_reaches_the_weights(
    run_finetune: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = EventRecorder()
    weights: list[torch.Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def overflow(parameters: Any, *rest: Any, **named: Any) -> Any:
        trainable = [p for p in parameters if p.requires_grad]
        if len(recorder.losses) == 2:
            trainable[0].grad.fill_(torch.inf)
            weights.extend(trainable)
        return clip(trainable, *rest, **named)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    with pytest.raises(TrainingDivergedError, match="gradient norm is inf at step 3"):
        run_finetune(recorder)
    assert weights
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_complete(
    run_finetune: RunFinetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = EventRecorder()
    save = torch.save

    def fill_disk(what: Any, where: Any, *rest: Any, **named: Any) -> None:
        if "checkpoint-4" in str(where):
            Path(where).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(what, where, *rest, **named)

    monkeypatch.setattr(torch, "save", fill_disk)
    report = run_finetune(recorder, keep_checkpoints=5, max_steps=5, eval_every=2)
    assert "the disk is full: step 4 is not saved" in recorder.notes
    assert "checkpoint-2" in recorder.notes
    out = tmp_path / "out"
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5"]
    assert not (out / ".writing").exists()
    assert report.best_step == 5


def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        with checkpoints.staging(owner=True) as staging:
            (staging / f"checkpoint-{step}").mkdir()
            (staging / f"checkpoint-{step}" / STATE_FILE).write_text("{}")
        checkpoints.commit(step, best)
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"micro_batch_size": 1, "gradient_checkpointing": True}, {"micro_batch_size": 8}],
    ids=["small", "large"],
)
def test_settings_of_memory_change_no_loss(
    run_finetune: RunFinetune, finished_run: FinishedRun, settings: dict[str, object]
) -> None:
    recorder = EventRecorder()
    run_finetune(recorder, **CONSTANT, **settings, max_steps=3)
    assert_same_losses(recorder, finished_run, 3, tolerance=1e-5)


@pytest.mark.slow
def test_a_job_that_cannot_fit_is_refused_with_settings_that_do(
    run_finetune: RunFinetune, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match="activations") as refused:
        run_finetune(batch_size=2**22, micro_batch_size=2**21)
    assert "--micro-batch-size" in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_trainings_cannot_use_the_same_folder(
    run_finetune: RunFinetune, tmp_path: Path
) -> None:
    recorder = EventRecorder()
    refusals: list[str] = []

    def start_another(event: TrainEvent) -> None:
        if isinstance(event, TrainStep) and event.step == 1:
            with pytest.raises(ConfigError) as refused:
                run_finetune(request={"overwrite": True})
            refusals.append(str(refused.value))

    recorder.on_event = start_another
    run_finetune(recorder, max_steps=2)
    assert refusals == [f"another llmctl is training in {tmp_path / 'out'}"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
