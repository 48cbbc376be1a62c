"""Table of the kinds of checkpoints that people bring: loaded with the right weights, or refused.

Run `python -m tests.compat.checkpoints`; it takes about a minute on two cores. The same files are
read by Transformers alone for comparison.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from llmctl.engine.loading.load import load_model
from llmctl.errors import LlmctlError
from llmctl.types import ModelSpec
from tests.compat.table import write_table
from tests.tiny import save_tiny_model

_IDS = torch.tensor([[5, 17, 200, 3, 7, 90, 41, 41]])
_WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def rewrite(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    """Return a change of the tensors of a folder."""

    def apply(folder: Path) -> None:
        file = folder / _WEIGHTS
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return apply


def rename(new: Callable[[str], str]) -> Change:
    """Return a change of the names of the tensors."""
    return rewrite(lambda weights: {new(name): tensor for name, tensor in weights.items()})


def without(part: str) -> Change:
    """Return a removal of the tensors whose name holds `part`."""
    return rewrite(lambda weights: {n: t for n, t in weights.items() if part not in n})


def with_tensor(name: str, *shape: int) -> Change:
    """Return an addition of a tensor."""
    return rewrite(lambda weights: weights | {name: torch.zeros(shape)})


def with_config(**values: Any) -> Change:
    """Return a change of `config.json`."""

    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def with_pickle(wrapper: str = "") -> Change:
    """Return a conversion to the format of `torch.save`."""

    def apply(folder: Path) -> None:
        weights = load_file(folder / _WEIGHTS)
        (folder / _WEIGHTS).unlink()
        torch.save({wrapper + n: t for n, t in weights.items()}, folder / "pytorch_model.bin")

    return apply


def in_shards(folder: Path) -> None:
    """Write the weights in several files."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / _WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")


def with_missing_shard(folder: Path) -> None:
    """Write the weights in several files, and remove one."""
    in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def truncated(folder: Path) -> None:
    """Cut the weights off, as an interrupted copy does."""
    file = folder / _WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def with_unmerged_adapter(folder: Path) -> None:
    """Save the state of a model of PEFT whole."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"])
    )
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})


def quantised(method: str) -> Change:
    """Return the declaration of a quantisation."""
    values: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": 32}
    return with_config(quantization_config=values)


def unchanged(folder: Path) -> None:
    """Leave the checkpoint as it is."""


KINDS: dict[str, Change] = {
    "one safetensors file": unchanged,
    "several safetensors files": in_shards,
    "several files, one missing": with_missing_shard,
    "a file that was cut off": truncated,
    "`pytorch_model.bin`, with `--allow-pickle`": with_pickle(),
    "names after `torch.compile` (`_orig_mod.`)": rename(lambda name: f"_orig_mod.{name}"),
    "the same in `pytorch_model.bin`": with_pickle("_orig_mod."),
    "names after data parallelism (`module.`)": rename(lambda name: f"module.{name}"),
    "names in PEFT (`base_model.model.`)": rename(lambda name: f"base_model.model.{name}"),
    "both (`module._orig_mod.`)": rename(lambda name: f"module._orig_mod.{name}"),
    "one layer compiled": rename(lambda n: n.replace("layers.1.", "layers.1._orig_mod.")),
    "names after activation checkpointing": rename(
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
    ),
    "names without `model.`": rename(lambda name: name.removeprefix("model.")),
    "an adapter that was not merged": with_unmerged_adapter,
    "no tensors of a layer": without(".layers.1."),
    "no head, untied": without("lm_head"),
    "a tensor that is unknown": with_tensor("model.layers.0.self_attn.q_proj.bias", 32),
    "a tensor of another shape": with_tensor("model.norm.weight", 16),
    "`config.json` with too few layers": with_config(num_hidden_layers=1),
    "`config.json` with too many layers": with_config(num_hidden_layers=3),
    "`config.json` with another vocabulary": with_config(vocab_size=300),
    "a layer of multi-token prediction, declared": lambda folder: (
        with_config(num_nextn_predict_layers=1)(folder),
        with_tensor("model.layers.2.mlp.up_proj.weight", 64, 32)(folder),
    )[0],
    "the same, known by its modules": with_tensor("model.layers.2.eh_proj.weight", 32, 64),
    "an undeclared layer too many": with_tensor("model.layers.2.mlp.up_proj.weight", 64, 32),
    "weights of a vision tower": with_tensor("vision_tower.encoder.layers.0.fc1.weight", 4),
    "tables of rotary positions": with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 4),
    "MLX, 4 bits": with_config(quantization={"group_size": 64, "bits": 4}),
    **{
        f"declared as {method}": quantised(method)
        for method in ("gptq", "awq", "compressed-tensors", "hqq", "auto-round", "exl3")
    },
}


def logits(model: Any) -> Tensor:
    """Return the logits of a fixed text."""
    with torch.inference_mode():
        result: Tensor = model.eval()(input_ids=_IDS, use_cache=False).logits.float()
    return result


def result_here(folder: Path, expected: Tensor) -> str:
    """Load a folder as every command does."""
    spec = ModelSpec(str(folder), device="cpu", dtype="float32", allow_pickle=True)
    try:
        found = logits(load_model(spec).model)
    except LlmctlError as error:
        return "refused: " + str(error).replace(f"{folder}", "FOLDER").replace("|", "/")[:110]
    return "right" if torch.equal(found, expected) else "**wrong**"


def result_of_transformers(folder: Path, expected: Tensor) -> str:
    """Load a folder with Transformers alone."""
    try:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found = logits(model)
    except Exception as error:
        return type(error).__name__
    if found.shape != expected.shape or not torch.equal(found, expected):
        return "other logits, no error"
    return "right"


def main() -> None:
    """Make, load and compare a checkpoint of every kind."""
    unlisted = set(AUTO_QUANTIZATION_CONFIG_MAPPING) & {"exl3"}
    assert not unlisted, "Transformers reads it now: choose another unknown quantisation"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number, (kind, change) in enumerate(KINDS.items()):
            folder = save_tiny_model(Path(name) / f"m{number}")
            expected = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
            change(folder)
            here = result_here(folder, expected)
            rows.append((kind, here, result_of_transformers(folder, expected)))
            print(*rows[-1], sep=" | ", flush=True)
    write_table(
        "checkpoints",
        ("checkpoint", "llmctl", "Transformers alone"),
        rows,
        ("transformers", "peft", "safetensors", "torch"),
    )


if __name__ == "__main__":
    main()
