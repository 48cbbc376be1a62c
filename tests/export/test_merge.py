"""Merging an adapter: equal logits, a complete model folder, or no folder at all."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.models.provenance import Provenance
from llmctl.errors import ConfigError, ModelLoadError, OutOfMemoryError
from llmctl.services.merge import MergeFailedError, MergeOptions, merge
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams
from tests.adapters import save_adapter, save_trained_adapter
from tests.tiny import save_tiny_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ALL},
    "rslora": {
        "target_modules": ALL,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 6},
        "alpha_pattern": {"up_proj": 3},
        "layers_to_transform": [1],
    },
    "dora": {"target_modules": ALL, "use_dora": True, "use_rslora": True},
    "head": {"target_modules": [*ALL, "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 7]},
    "biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
}
MERGED_LAYERS = {
    "lora": 14,
    "rslora": 7,
    "dora": 14,
    "head": 15,
    "embedding": 3,
    "whole": 2,
    "tokens": 0,  # merged by PEFT, all at once
    "biases": 0,
}
TIED = ["lora", "head", "embedding", "whole", "tokens"]
"""Kinds for which tied embeddings take another path."""
IDS = torch.tensor([[5, 17, 200, 3, 7, 90, 41, 41]])


def save_sharded_model(folder: Path, *, tied: bool) -> Path:
    """Write a model in float32, in several files."""
    save_tiny_model(
        folder, tie_word_embeddings=tied, generation={"do_sample": True, "temperature": 0.5}
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sharded_model(tmp_path_factory.mktemp("base") / "tiny", tied=False)


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embedding is its output layer too."""
    return save_sharded_model(tmp_path_factory.mktemp("base") / "tied", tied=True)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `base`. Shared by tests: copy it to change it."""
    folder = tmp_path_factory.mktemp("adapter") / "v1"
    return save_trained_adapter(folder, base, model_id="m-1", strength=0.1, **KINDS["lora"])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(IDS).logits
    return result


def adapted_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, str(adapter)))


def merged_logits(folder: Path, **options: Any) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "kind"),
    [*(("base", kind) for kind in KINDS), *(("tied_base", kind) for kind in TIED)],
)
def test_the_merged_model_has_the_logits_of_base_and_adapter(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, kind: str
) -> None:
    base: Path = request.getfixturevalue(model)
    output = tmp_path / "out"
    adapter = save_trained_adapter(tmp_path / "v1", base, strength=0.1, **KINDS[kind])
    report = merge(MergeOptions(adapter=str(adapter), output=output, dtype="float32"))
    expected = adapted_logits(base, adapter)
    torch.testing.assert_close(
        merged_logits(output, dtype=torch.float32), expected, atol=2e-4, rtol=1e-4
    )
    assert report.comparison is not None
    assert report.comparison.relative < 1e-4 < report.comparison.effect
    assert report.comparison.adapter_loss == pytest.approx(report.comparison.merged_loss, abs=1e-4)
    assert report.merged.layers == MERGED_LAYERS[kind]
    if report.merged.layers:  # tensor by tensor, in the files of the base
        names = sorted(path.name for path in base.glob("model*"))
        assert sorted(path.name for path in output.glob("model*")) == names


@pytest.mark.slow
def test_the_output_folder_is_a_complete_model(adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "bot"
    merge(MergeOptions(adapter=str(adapter), output=output))
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for f in output.glob("*.safetensors") for t in load_file(f).values()} == {
        torch.bfloat16
    }
    template = AutoTokenizer.from_pretrained(adapter).chat_template
    assert AutoTokenizer.from_pretrained(output).chat_template == template
    assert json.loads((output / "generation_config.json").read_text())["temperature"] == 0.5
    assert Provenance.read(output) == Provenance.read(adapter)
    assert 'library_name: "transformers"' in (output / "README.md").read_text()
    assert not (output / "adapter_config.json").exists()
    assert [path.name for path in output.parent.iterdir()] == ["bot"]
    with HFRunner(ModelSpec(str(output), device="cpu")) as engine:
        engine.load()
        assert engine.info().logged_model_id == "m-1"
        sampling = SamplingParams(max_new_tokens=3)
        assert engine.generate(GenerationRequest(prompt="a", sampling=sampling)).choices


@pytest.mark.slow
def test_an_adapter_trained_on_four_bits_is_merged_into_the_original_weights(
    base: Path, tmp_path: Path
) -> None:
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=quantization, device_map={"": "cpu"}
    )
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(str(tmp_path / "v1"))
    output = tmp_path / "out"
    merge(MergeOptions(adapter=str(tmp_path / "v1"), output=output, dtype="float32"))
    expected = adapted_logits(base, tmp_path / "v1")
    torch.testing.assert_close(
        merged_logits(output, dtype=torch.float32), expected, atol=2e-4, rtol=1e-4
    )


def test_a_resized_embedding_is_merged(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(300)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(str(tmp_path / "v1"), save_embedding_layers=True)
    expected = logits(adapted)
    output = tmp_path / "out"
    options = MergeOptions(
        adapter=str(tmp_path / "v1"), base=str(base), output=output, dtype="float32"
    )
    report = merge(options)
    assert report.merged.whole == ("lm_head.weight", "model.embed_tokens.weight")
    assert expected.shape[-1] == 300
    torch.testing.assert_close(merged_logits(output, dtype=torch.float32), expected)


@pytest.mark.slow
def test_a_merge_that_lost_the_effect_of_the_adapter_is_deleted(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without its merge the result is the base, whose logits are close to those with the adapter.
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda *_, **__: None)
    with pytest.raises(MergeFailedError, match="the merged model was deleted") as caught:
        merge(MergeOptions(adapter=str(adapter), output=tmp_path / "out"))
    assert "--dtype float32" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_changes_too_small_for_sixteen_bits_are_refused_and_kept_in_float32(
    tmp_path: Path,
) -> None:
    base = save_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(base)
    adapter = save_trained_adapter(tmp_path / "v1", base, strength=0.004, **KINDS["lora"])
    options = MergeOptions(adapter=str(adapter), output=tmp_path / "out")
    with pytest.raises(MergeFailedError):
        merge(options)
    exact = MergeOptions(adapter=str(adapter), output=tmp_path / "out", dtype="float32")
    assert merge(exact).comparison is not None


def test_an_output_folder_is_overwritten_only_on_request_and_if_llmctl_wrote_it(
    adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "letter.txt").write_text("dear")
    for overwrite, message in ((False, "not empty"), (True, "not written by llmctl")):
        options = MergeOptions(adapter=str(adapter), output=output, overwrite=overwrite)
        with pytest.raises(ConfigError, match=message):
            merge(options)
    assert [path.name for path in output.iterdir()] == ["letter.txt"]
    (output / "letter.txt").unlink()
    merge(MergeOptions(adapter=str(adapter), output=output, verify=False))
    before = (output / "config.json").stat().st_ino
    merge(MergeOptions(adapter=str(adapter), output=output, verify=False, overwrite=True))
    assert (output / "config.json").stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_weights_of_the_base_are_refused_unless_named(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter, tmp_path / "v1"))
    other = Path(shutil.copytree(base, tmp_path / "other"))
    file = max(other.glob("model-*.safetensors"))
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    provenance = json.loads((adapter / "llmctl.json").read_text())
    provenance["base"]["model"] = str(other)
    (adapter / "llmctl.json").write_text(json.dumps(provenance))
    with pytest.raises(ConfigError, match="has other weights") as caught:
        merge(MergeOptions(adapter=str(adapter), output=tmp_path / "out"))
    assert "--base" in caught.value.hint
    options = MergeOptions(
        adapter=str(adapter), base=str(other), output=tmp_path / "out", verify=False
    )
    report = merge(options)
    assert "other weights" in report.notes[0]


def test_a_merge_that_cannot_work_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with pytest.raises(ConfigError, match="not an adapter folder"):
        merge(MergeOptions(adapter=str(base), output=output))
    pickled = Path(shutil.copytree(base, tmp_path / "pickled"))
    adapter = save_adapter(tmp_path / "v1", pickled, **KINDS["lora"])
    quantized = json.loads((pickled / "config.json").read_text())
    quantized["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (pickled / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(ModelLoadError, match="does not have the original weights"):
        merge(MergeOptions(adapter=str(adapter), output=output, verify=False))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1))
    with pytest.raises(OutOfMemoryError, match="comparing the merged model needs") as caught:
        merge(MergeOptions(adapter=str(adapter), base=str(base), output=output))
    assert "--no-verify" in caught.value.hint
    assert not output.exists()


@pytest.mark.parametrize("kind", ["lora", "tokens"])
def test_a_base_that_lacks_tensors_is_refused(tmp_path: Path, kind: str) -> None:
    base = save_tiny_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "v1", base, **KINDS[kind])
    file = base / "model.safetensors"
    weights = {name: t for name, t in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    output = tmp_path / "out"
    with pytest.raises(ModelLoadError, match=r"lack model\.layers\.1\.mlp"):
        merge(MergeOptions(adapter=str(adapter), output=output, verify=False))
    assert not output.exists()
