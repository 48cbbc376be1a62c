"""Weights are loaded if the files have exactly those of the model, and refused otherwise."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmctl.engine.loading.load import LoadedModel, load_model
from llmctl.engine.loading.trainable import load_model_metadata
from llmctl.errors import ModelLoadError
from llmctl.types import ModelSpec, Quant
from tests.tiny import save_tiny_model

Weights = dict[str, Tensor]


def load(folder: Path, quant: Quant = "none") -> LoadedModel:
    return load_model(ModelSpec(str(folder), device="cpu", dtype="float32", quant=quant))


def change_file(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> Weights:
    """Rewrite the weights; return them as they were."""
    path = folder / "model.safetensors"
    before = load_file(path)
    save_file(change(before), path, metadata={"format": "pt"})
    return before


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
        lambda name: f"_orig_mod.{name.replace('.mlp.', '._checkpoint_wrapped_module.mlp.')}",
        lambda name: name.removeprefix("model."),
    ],
    ids=["compile", "peft", "parallel", "both", "one layer", "outer and inner", "without model."],
)
def test_known_prefixes_of_the_names_are_removed(
    folder: Path, rename: Callable[[str], str]
) -> None:
    before = change_weights(folder, lambda w: {rename(name): t for name, t in w.items()})
    loaded = dict(load(folder).model.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())


def test_known_prefixes_are_removed_in_files_of_torch_save(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    torch.save(wrapped, folder / "pytorch_model.bin")
    spec = ModelSpec(str(folder), device="cpu", dtype="float32", allow_pickle=True)
    loaded = dict(load_model(spec).model.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("quant", ["none", "4bit", "8bit"])
def test_a_checkpoint_that_lacks_a_layer_is_refused(folder: Path, quant: Quant) -> None:
    change_weights(folder, lambda w: {n: t for n, t in w.items() if ".layers.1." not in n})
    with pytest.raises(ModelLoadError, match=r"lack model\.layers\.1\..* and 6 more"):
        load(folder, quant)


def test_an_untied_model_without_a_head_is_refused(folder: Path) -> None:
    change_weights(folder, lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"})
    with pytest.raises(ModelLoadError, match=r"lack lm_head\.weight"):
        load(folder)


def test_a_tied_model_needs_no_head(tmp_path: Path) -> None:
    loaded = load(save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)).model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.0.self_attn.q_proj.bias", 32, "the model does not: model.layers.0.self_a"),
        ("model.norm.weight", 16, r"another shape: model.norm.weight \(16,\) instead of \(32,\)"),
    ],
)
def test_unknown_and_misshapen_tensors_are_refused(
    folder: Path, name: str, shape: int, message: str
) -> None:
    change_weights(folder, lambda w: w | {name: torch.zeros(shape)})
    with pytest.raises(ModelLoadError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.0.self_attn.rotary_emb.inv_freq"],
        ["model.layers.2.mlp.up_proj.weight", "model.layers.2.eh_proj.weight"],
        ["mtp.layers.0.mlp.up_proj.weight"],
        ["model.mtp_block.0.linear.weight"],
        ["vision_tower.encoder.layers.7.mlp.fc1.weight"],
        ["model.audio_tower.conv1.weight"],
    ],
)
def test_tensors_that_the_text_does_not_need_are_left_out(folder: Path, names: list[str]) -> None:
    change_weights(folder, lambda w: w | {name: torch.zeros(4) for name in names})
    load(folder)


@pytest.mark.parametrize(
    ("config", "accepted"),
    [({}, False), ({"num_nextn_predict_layers": 1}, True), ({"num_hidden_layers": 1}, False)],
)
def test_layers_after_the_last_are_refused_unless_they_predict_further_tokens(
    folder: Path, config: dict[str, int], accepted: bool
) -> None:
    change_file(folder, "config.json", config)
    change_weights(folder, lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)})
    if accepted:
        load(folder)
        return
    with pytest.raises(ModelLoadError, match=r"does not: model\.layers\.[12]\."):
        load(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.0.supervision.weight", "model.layers.1.mlp.vision_mlp.weight"]
)
def test_unknown_parts_of_a_layer_are_refused_whatever_their_names_hold(
    folder: Path, name: str
) -> None:
    change_weights(folder, lambda w: w | {name: torch.zeros(4)})
    with pytest.raises(ModelLoadError, match="does not: "):
        load(folder)


def test_weights_with_an_adapter_that_is_not_merged_are_named(folder: Path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"])
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelLoadError) as caught:
        load(folder)
    assert "merge_and_unload()" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("method", "message"),
    [("exl3", "'exl3', which Transformers does not read"), ("torchao", "quantised with torchao")],
)
def test_an_unusable_quantisation_is_named(folder: Path, method: str, message: str) -> None:
    if find_spec(method) is not None:
        pytest.skip(f"{method} is installed")
    quantisation = {"quant_method": method, "quant_type": "int4_weight_only"}
    change_file(folder, "config.json", {"quantization_config": quantisation})
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(folder)
    assert "GGUF" in str(caught.value.hint)


def test_weights_of_mlx_are_named(folder: Path) -> None:
    change_file(folder, "config.json", {"quantization": {"group_size": 64, "bits": 4}})
    with pytest.raises(ModelLoadError, match="quantised with 'MLX'"):
        load(folder)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20}, (0.6, 0.95, 20)),
        ({"do_sample": False, "temperature": 0.6}, (0.6, None, None)),
        ({"top_k": -1, "do_sample": True}, (None, None, 0)),
        ({"temperature": 3.0, "top_p": 1.5}, (2.0, 1.0, None)),
        ({"temperature": "hot"}, (None, None, None)),
        ({"top_k": 0.5}, (None, None, None)),
    ],
)
def test_generation_config_gives_the_defaults_and_never_refuses_a_model(
    folder: Path, values: dict[str, Any], expected: tuple[float | None, ...]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values | {"max_new_tokens": 7}))
    loaded = load(folder)
    defaults = loaded.sampling_defaults
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == expected
    assert defaults.max_new_tokens == 7
    path = str(folder / "generation_config.json")
    noted = [note for note in loaded.info.notes if note.startswith(path)]
    odd = {3.0: 2, "hot": 1}.get(values.get("temperature", 0), 0) + (values.get("top_k") == 0.5)
    assert len(noted) == odd


@pytest.mark.parametrize(
    "text",
    [
        "{bad",
        "[1]",
        '{"eos_token_id": "x"}',
        '{"eos_token_id": [2, "x"]}',
        '{"cache_implementation": "unknown"}',
    ],
)
def test_an_invalid_generation_config_is_noted_and_ignored(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    loaded = load(folder)
    assert [note for note in loaded.info.notes if "generation_config.json" in note]
    trained = load_model_metadata(ModelSpec(str(folder), device="cpu"))
    assert trained.eos_ids == loaded.eos_ids
    assert (2 in loaded.eos_ids) == ("2" in text)
