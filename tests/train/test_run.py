"""A training that runs out of memory, of disk or goes wrong ends as a person can rely on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import ConfigError, OutOfMemoryError
from llmctl.train.stop import TrainingDivergedError
from llmctl.train.trainer import SftTrainer
from llmctl.types import TrainEvent, TrainStep
from tests.train.conftest import EventRecorder, RunFinetune

_WHOLE: list[EventRecorder] = []


@pytest.fixture
def whole(teach: RunFinetune, tmp_path: Path) -> EventRecorder:
    """What an undisturbed run tells; run once for all tests, for it is the same to the bit."""
    if not _WHOLE:
        watched = EventRecorder()
        teach(watched, output=tmp_path / "whole")
        _WHOLE.append(watched)
    return _WHOLE[0]


def test_a_run_leaves_an_adapter_that_the_engine_serves(teach: RunFinetune, tmp_path: Path) -> None:
    from llmctl.engine.hf_runner import HFRunner
    from llmctl.engine.stream import collect_result
    from llmctl.types import GenerationRequest, Message, ModelSpec, SamplingParams

    watched = EventRecorder()
    report = teach(watched)
    assert report.steps == watched.plan.steps == 10
    assert report.eval_losses[-1][1] < report.eval_losses[0][1]
    out = tmp_path / "out"
    for name in ("adapter_model.safetensors", "llmctl.json", "README.md", "run.lock.json"):
        assert (out / name).is_file()
    assert json.loads((out / "llmctl.json").read_text())["template"]
    with HFRunner(ModelSpec(str(out), dtype="float32", device="cpu")) as engine:
        engine.load()
        question = (Message("user", "Count to 3."),)
        greedy = SamplingParams(temperature=0, max_new_tokens=4)
        collect_result(engine.submit(GenerationRequest(messages=question, sampling=greedy)))


def test_the_same_run_has_the_same_losses_to_the_bit(teach: RunFinetune, tmp_path: Path) -> None:
    first, second = EventRecorder(), EventRecorder()
    teach(first, dropout=0.1)
    teach(second, dropout=0.1, output=tmp_path / "again")
    assert first.losses == second.losses
    assert first.evals == second.evals


def test_a_run_is_repeated_from_its_receipt(teach: RunFinetune, tmp_path: Path) -> None:
    first, again = EventRecorder(), EventRecorder()
    teach(first, dropout=0.1, packing=True)
    teach(again, output=tmp_path / "again", request={"from_run": str(tmp_path / "out")})
    assert again.losses == first.losses
    assert "not the same run" not in again.notes


def test_an_output_folder_is_never_overwritten_unasked(teach: RunFinetune, tmp_path: Path) -> None:
    teach(max_steps=1)
    kept = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="not empty") as refused:
        teach(max_steps=1)
    assert "--overwrite" in refused.value.hint
    assert "--resume" in refused.value.hint
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == kept
    teach(max_steps=2, request={"overwrite": True})
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="does not hold a run"):
        teach(request={"overwrite": True}, output=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_what_a_run_reads_is_never_overwritten_by_it(
    teach: RunFinetune, rows: Path, tmp_path: Path
) -> None:
    out, inside = tmp_path / "out", tmp_path / "out" / "rows.jsonl"
    teach(max_steps=1)
    shutil.copy(rows, inside)
    base = tmp_path / "full"
    teach(method="full", output=base, max_steps=1)
    teach(model=str(base), output=tmp_path / "on-it", max_steps=1)
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
            teach(request={"overwrite": True}, max_steps=1, **settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("[of]*/**/*")} == before


@pytest.mark.parametrize("step", [1, 4])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(
    teach: RunFinetune, whole: EventRecorder, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = EventRecorder()
    real = SftTrainer.compute_loss

    def limited(self: SftTrainer, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if len(inputs["input_ids"]) > 1 and self.state.global_step + 1 >= step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, model, inputs, *rest, **named)

    monkeypatch.setattr(SftTrainer, "compute_loss", limited)
    report = teach(tight)
    assert f"out of memory in step {step} with a micro-batch of 4" in tight.notes
    assert "micro-batches of 2" in tight.notes
    assert "the batch size stays 8" in tight.notes
    assert [number for number, _ in report.losses] == list(range(1, 11))
    for number, loss in tight.losses.items():
        assert loss == pytest.approx(whole.losses[number], abs=1e-4)


def test_memory_that_does_not_hold_one_row_is_an_error_with_a_way_out(
    teach: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(SftTrainer, "compute_loss", never)
    with pytest.raises(OutOfMemoryError, match="with a micro-batch of 1") as failed:
        teach()
    assert "--gradient-checkpointing" in failed.value.hint


def test_a_loss_that_is_no_number_names_the_step_and_the_rows(
    teach: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SftTrainer.compute_loss

    def poisoned(self: SftTrainer, *rest: Any, **named: Any) -> Any:
        loss = real(self, *rest, **named)
        return loss * torch.nan if self.state.global_step == 5 else loss

    monkeypatch.setattr(SftTrainer, "compute_loss", poisoned)
    with pytest.raises(TrainingDivergedError, match="loss is NaN at step 6") as failed:
        teach()
    assert "rows.jsonl:" in str(failed.value)
    assert "checkpoint-4" in str(failed.value)


def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    teach: RunFinetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[torch.Tensor] = []

    def clip(self: SftTrainer, model: Any) -> Any:
        learning = [p for p in model.parameters() if p.requires_grad]
        if self.state.global_step == 2:
            learning[0].grad.fill_(torch.inf)
            weights.extend(learning)
        return real(self, model)

    real = SftTrainer._clip_grad_norm
    monkeypatch.setattr(SftTrainer, "_clip_grad_norm", clip)
    with pytest.raises(TrainingDivergedError, match="gradient norm is inf at step 3"):
        teach()
    assert all(weight.isfinite().all() for weight in weights)


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    teach: RunFinetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    watched = EventRecorder()
    real = torch.save

    def save(what: Any, where: Any, *rest: Any, **named: Any) -> None:
        if "checkpoint-8" in str(where):
            Path(where).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(what, where, *rest, **named)

    monkeypatch.setattr(torch, "save", save)
    report = teach(watched, keep_checkpoints=5)
    assert "the disk is full: step 8 is not saved" in watched.notes
    assert "checkpoint-4" in watched.notes
    out = tmp_path / "out"
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-4"]
    assert not (out / ".writing").exists()
    assert report.best_step == 10


def test_checkpoints_are_let_go_but_for_the_newest_and_the_best(
    teach: RunFinetune, tmp_path: Path
) -> None:
    teach(save_every=1, keep_checkpoints=2)
    names = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert names == {"checkpoint-9", "checkpoint-10"}


@pytest.mark.parametrize("micro", [1, 8])
def test_how_many_rows_are_held_at_once_changes_no_loss(
    teach: RunFinetune, whole: EventRecorder, micro: int
) -> None:
    other = EventRecorder()
    teach(other, micro_batch_size=micro)
    for step, loss in other.losses.items():
        assert loss == pytest.approx(whole.losses[step], rel=1e-4)


def test_recomputed_activations_change_no_loss(teach: RunFinetune, whole: EventRecorder) -> None:
    other = EventRecorder()
    teach(other, gradient_checkpointing=True)
    for step, loss in other.losses.items():
        assert loss == pytest.approx(whole.losses[step], abs=1e-5)


def test_what_cannot_fit_is_refused_with_the_settings_that_would(
    teach: RunFinetune, tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match="activations") as refused:
        teach(batch_size=2**22, micro_batch_size=2**21)
    assert "--micro-batch-size" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_two_trainings_do_not_write_in_one_folder(teach: RunFinetune, tmp_path: Path) -> None:
    watched = EventRecorder()

    def another(event: TrainEvent) -> None:
        if isinstance(event, TrainStep) and event.step == 1:
            with pytest.raises(ConfigError, match="another llmctl is training in"):
                teach(request={"overwrite": True})

    watched.on_event = another
    teach(watched, max_steps=2)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
