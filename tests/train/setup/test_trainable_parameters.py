"""Every method trains, and its result loads again; continued adapters keep their settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.engine.loading.trainable import load_for_training, load_model_metadata
from llmctl.engine.models.provenance import Provenance
from llmctl.errors import ConfigError
from llmctl.types import ModelSpec
from tests.adapters import save_trained_adapter
from tests.tiny import save_tiny_model
from tests.train.conftest import (
    FAST_LEARNING,
    EventRecorder,
    FinishedRun,
    PlanFinetune,
    RunFinetune,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "qlora"},
        {"method": "qlora", "quant": "8bit"},
        {"method": "dora"},
        {"method": "rslora"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_method_lowers_the_evaluation_loss(
    run_finetune: RunFinetune, tmp_path: Path, settings: dict[str, object]
) -> None:
    recorder = EventRecorder()
    report = run_finetune(recorder, **settings, **FAST_LEARNING, dtype="bfloat16")
    assert report.eval_losses[-1][1] < report.eval_losses[0][1] - 0.05
    assert recorder.plan.trainable < recorder.plan.parameters
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_full_fine_tuning_is_saved_as_a_model_with_the_same_replies(full_run: FinishedRun) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report, plan = full_run.report, full_run.recorder.plan
    assert report.eval_losses[-1][1] < report.eval_losses[0][1] - 0.05
    assert plan.trainable == plan.parameters
    (sample,) = report.after
    model = AutoModelForCausalLM.from_pretrained(full_run.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(full_run.folder)
    inputs: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": sample.prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]
    reply = str(tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert reply.strip() == sample.reply
    assert sample.reply != report.before[0].reply


@pytest.mark.slow
def test_an_adapter_is_continued(run_finetune: RunFinetune, finished_run: FinishedRun) -> None:
    recorder = EventRecorder()
    run_finetune(recorder, model=str(finished_run.folder), max_steps=1)
    first = finished_run.recorder
    assert recorder.evals[0] == pytest.approx(first.evals[10], abs=1e-5)
    assert recorder.plan.trainable == first.plan.trainable


def test_a_continued_adapter_keeps_method_rank_and_layers(
    run_finetune: RunFinetune, tiny_folder: Path, tmp_path: Path
) -> None:
    recorder = EventRecorder()
    settings_of_peft: dict[str, Any] = {
        "r": 2,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "use_dora": True,
    }
    adapter = save_trained_adapter(
        tmp_path / "out", tiny_folder, target_modules=["q_proj"], **settings_of_peft
    )
    unset = {"rank": None, "model": str(adapter), "max_steps": 1, "output": tmp_path / "more"}
    run_finetune(recorder, **unset)
    settings = {one.name: (one.value, one.origin) for one in recorder.plan.settings}
    for name, value in {"method": "dora", "rank": 2, "alpha": 6, "dropout": 0.1}.items():
        assert settings[name] == (value, "the adapter")
    assert settings["target_modules"][0] == ("q_proj",)
    provenance = Provenance.read(tmp_path / "more")
    assert provenance is not None
    assert (provenance.method, provenance.hyperparameters["rank"]) == ("dora", 2)
    with pytest.raises(ConfigError) as refused:
        run_finetune(**{**unset, "rank": 8, "method": "lora", "alpha": 6, "output": tmp_path / "3"})
    assert "rank is 8, and the adapter" in str(refused.value)
    assert "method is lora, and the adapter" in str(refused.value)
    assert "alpha" not in str(refused.value)


def test_other_weights_than_those_of_the_adapter_are_noted(
    plan_finetune: PlanFinetune, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    adapter = save_trained_adapter(tmp_path / "v1", base)
    assert not any("other weights" in note for note in plan_finetune(model=str(adapter)).notes)
    save_tiny_model(base, initializer_range=0.03)
    assert any("other weights" in note for note in plan_finetune(model=str(adapter)).notes)


def test_evaluation_keeps_gradients_through_four_bit_layers(tmp_path: Path) -> None:
    """bitsandbytes repacks weights in evaluation mode, for a kernel without gradient."""
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
    for old, new in zip(before, gradient(), strict=True):
        torch.testing.assert_close(old, new)


def test_embeddings_and_output_layer_stay_in_sixteen_bits_with_four_bit_layers(
    tmp_path: Path,
) -> None:
    folder = save_tiny_model(tmp_path)
    metadata = load_model_metadata(
        ModelSpec(str(folder), quant="4bit", dtype="bfloat16", device="cpu")
    )
    model = load_for_training(metadata, dtype=torch.bfloat16, attention="sdpa")
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_unknown_layers_are_refused_with_the_names_of_the_layers(
    run_finetune: RunFinetune,
) -> None:
    with pytest.raises(ConfigError, match="no layers named q_porj") as failed:
        run_finetune(target_modules=["q_porj"])
    assert "--target-modules q_proj" in failed.value.hint


@pytest.mark.slow
def test_packing_gives_the_same_loss_per_token_as_separate_rows(
    run_finetune: RunFinetune, tmp_path: Path
) -> None:
    """With all rows in one step: the same tokens, packed or not."""
    plain, packed = EventRecorder(), EventRecorder()
    settings = {"batch_size": 64, "micro_batch_size": 64, "max_steps": 1, "max_length": 120}
    run_finetune(plain, output=tmp_path / "plain", **settings)
    run_finetune(packed, packing=True, **settings)
    assert packed.losses[1] == pytest.approx(plain.losses[1], rel=1e-5)


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-mamba", model_type="mamba")


@pytest.mark.slow
def test_packing_is_refused_for_a_recurrent_model(run_finetune: RunFinetune, mamba: Path) -> None:
    settings = {
        "model": str(mamba),
        "target_modules": ["in_proj", "x_proj"],
        "max_steps": 1,
        "max_length": 32,
        "batch_size": 1,
        "micro_batch_size": 1,
        "eval_fraction": 0,
    }
    with pytest.raises(ConfigError, match="packing does not work with mamba models") as refused:
        run_finetune(**settings, packing=True)
    assert refused.value.hint == "--no-packing"
    assert run_finetune(**settings, packing=False, request={"overwrite": True}).steps == 1


def test_layers_of_mamba_that_cannot_have_an_adapter_are_refused(
    run_finetune: RunFinetune, mamba: Path
) -> None:
    with pytest.raises(ConfigError, match="LoRA does not support all layers of mamba") as refused:
        run_finetune(model=str(mamba), target_modules=("in_proj", "out_proj"))
    assert "--target-modules in_proj" in refused.value.hint
    assert "out_proj" not in refused.value.hint
