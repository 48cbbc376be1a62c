"""Every method teaches, and what it leaves loads again."""

import shutil
from pathlib import Path

import pytest
import torch

from llmctl.engine.loading.trainable import load_for_training, load_model_metadata
from llmctl.engine.models.provenance import Provenance
from llmctl.errors import ConfigError
from llmctl.types import ModelSpec
from tests.tiny import save_tiny_model
from tests.train.conftest import EventRecorder, RunFinetune


@pytest.mark.parametrize("method", ["lora", "qlora", "dora", "rslora", "full"])
def test_a_method_learns(teach: RunFinetune, tmp_path: Path, method: str) -> None:
    watched = EventRecorder()
    lengthy = {"epochs": 4, "max_steps": 20, "eval_every": 10}
    report = teach(watched, method=method, dtype="bfloat16", **lengthy)
    assert report.eval_losses[-1][1] < report.eval_losses[0][1] - 0.05
    assert watched.plan.trainable < watched.plan.parameters or method == "full"
    out = tmp_path / "out"
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert (out / name).is_file()


def test_eight_bits_learn_too(teach: RunFinetune) -> None:
    report = teach(quant="8bit", method="qlora", epochs=4, max_steps=20, eval_every=10)
    assert report.eval_losses[-1][1] < report.eval_losses[0][1] - 0.05


def test_full_training_is_saved_in_a_model_that_answers_the_same(
    teach: RunFinetune, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    report = teach(method="full", max_steps=2, eval_every=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert report.eval_losses
    assert sum(p.numel() for p in model.parameters()) > 0


def test_an_adapter_is_taught_further(teach: RunFinetune, tmp_path: Path) -> None:
    first, second = EventRecorder(), EventRecorder()
    teach(first)
    teach(second, model=str(tmp_path / "out"), output=tmp_path / "more", max_steps=2)
    assert second.evals[0] == pytest.approx(first.evals[10], abs=1e-5)
    assert second.plan.trainable == first.plan.trainable


def test_an_adapter_that_is_taught_further_stays_what_it_was_made(
    teach: RunFinetune, tmp_path: Path
) -> None:
    made, watched = str(tmp_path / "out"), EventRecorder()
    teach(method="dora", rank=2, alpha=6, dropout=0.1, target_modules=["q_proj"], max_steps=1)
    open_choice = {"rank": None, "model": made, "max_steps": 1, "output": tmp_path / "more"}
    teach(watched, **open_choice)
    told = {one.name: (one.value, one.origin) for one in watched.plan.settings}
    for name, value in {"method": "dora", "rank": 2, "alpha": 6, "dropout": 0.1}.items():
        assert told[name] == (value, "the adapter")
    assert told["target_modules"][0] == ("q_proj",)
    taught = Provenance.read(tmp_path / "more")
    assert taught is not None
    assert (taught.method, taught.hyperparameters["rank"]) == ("dora", 2)
    with pytest.raises(ConfigError) as refused:
        teach(**{**open_choice, "rank": 8, "method": "lora", "alpha": 6, "output": tmp_path / "3"})
    assert "rank is 8, and the adapter" in str(refused.value)
    assert "method is lora, and the adapter" in str(refused.value)
    assert "alpha" not in str(refused.value)


def test_an_adapter_on_other_weights_than_it_learnt_on_is_told_of(
    teach: RunFinetune, tiny_folder: Path, tmp_path: Path
) -> None:
    base, watched = tmp_path / "base", EventRecorder()
    shutil.copytree(tiny_folder, base)
    teach(model=str(base), max_steps=1)
    save_tiny_model(base, initializer_range=0.03)
    teach(watched, model=str(tmp_path / "out"), output=tmp_path / "more", max_steps=1)
    assert any("has other weights" in note for note in watched.plan.notes)


def test_measuring_keeps_gradients_through_four_bit_layers(tmp_path: Path) -> None:
    """bitsandbytes repacks weights in evaluation mode, for a kernel that has no gradient."""
    from peft import LoraConfig, get_peft_model

    folder = save_tiny_model(tmp_path, hidden_size=64, intermediate_size=128, head_dim=16)
    metadata = load_model_metadata(
        ModelSpec(str(folder), quant="4bit", dtype="bfloat16", device="cpu")
    )
    model = load_for_training(metadata, dtype=torch.bfloat16, attention="sdpa")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    ids = torch.randint(0, 256, (2, 16))

    def gradient() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids[:1, :1])
    for then, now in zip(before, gradient(), strict=True):
        torch.testing.assert_close(then, now)


def test_embeddings_and_head_stay_in_sixteen_bits_beside_four(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    metadata = load_model_metadata(
        ModelSpec(str(folder), quant="4bit", dtype="bfloat16", device="cpu")
    )
    model = load_for_training(metadata, dtype=torch.bfloat16, attention="sdpa")
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_layers_that_are_not_there_are_named_with_those_that_are(teach: RunFinetune) -> None:
    with pytest.raises(ConfigError, match="no layers named q_porj") as failed:
        teach(target_modules=["q_porj"])
    assert "q_proj" in failed.value.hint


def test_packing_gives_the_same_loss_per_token_as_rows_alone(
    teach: RunFinetune, tmp_path: Path
) -> None:
    """All rows in one step: the same tokens, packed or not."""
    plain, packed = EventRecorder(), EventRecorder()
    every = {"batch_size": 64, "micro_batch_size": 64, "max_steps": 1, "max_length": 120}
    teach(plain, output=tmp_path / "plain", **every)
    teach(packed, packing=True, **every)
    assert packed.losses[1] == pytest.approx(plain.losses[1], rel=1e-5)
