"""Merge of an adapter into its model's weights, layer by layer, in float32.

The weights are the original, unquantized ones on disk. PEFT computes each merged layer, so LoRA,
rsLoRA, DoRA and rank patterns are as in training. Besides the adapter one matrix at a time is in
memory.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.loading.adapter_config import (
    BASE_PRESERVING_INITS,
    read_adapter_config,
    variants,
)
from llmctl.engine.loading.adapters import (
    META_ADAPTER_NAME,
    adapter_vocab_size,
    attach_static_adapter,
    holds_base_weights,
    inject_adapter,
    lora_layers,
    separate_shared_weights,
)
from llmctl.engine.loading.safetensors_writer import SafetensorsWriter, dtype_name
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.loading.weights import check_weights, read_original_weights
from llmctl.engine.models.weight_files import TensorEntry, model_entries, model_files
from llmctl.errors import ConfigError, ModelLoadError
from llmctl.types import Progress, ProgressCallback, ignore_progress

MergeDType = Literal["bfloat16", "float16", "float32"]
_Entries = Mapping[str, TensorEntry]
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class MergedWeights:
    """Summary of the written weights."""

    layers: int
    """Layers that the adapter changed; 0 if PEFT merged the whole model at once."""
    whole: tuple[str, ...]
    """Names of the tensors that the adapter holds in full."""
    bytes: int


def write_merged_weights(
    base: Path,
    adapter: Path,
    target: Path,
    dtype: MergeDType,
    progress: ProgressCallback = ignore_progress,
) -> MergedWeights:
    """Write the merged weights and their `config.json` to a folder.

    Args:
        base: folder of the model with its original weights in safetensors.
        dtype: of the result. Tensors that are stored in another type than most of the base's
            weights keep it.

    Raises:
        ConfigError: the adapter does not fit this model.
        ModelLoadError: the original weights of the base are missing, incomplete or unreadable.
    """
    from transformers import AutoConfig

    kind: torch.dtype = getattr(torch, dtype)
    try:
        entries = model_entries(base)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"the weights in {base} cannot be read: {error}") from error
    config = AutoConfig.from_pretrained(base)
    if not entries or getattr(config, "quantization_config", None) is not None:
        raise ModelLoadError(
            f"{base} does not have the original weights in safetensors, which merging needs",
            hint="name a model that has them with --base MODEL: quantized weights lose the changes",
        )
    check_weights(base)
    with quiet_libraries():
        weights = _lay_out(config, adapter, entries)
        if weights is None:
            return _merge_at_once(base, adapter, target, kind)
    files = _write_files(weights, target, kind, progress)
    size = sum((target / file).stat().st_size for file in files)
    _write_index(files, size, target)
    _write_config(base, target, kind, weights)
    return MergedWeights(len(weights.layers), tuple(sorted(weights.whole)), size)


class _Weights:
    """The merged tensors, each computed on request."""

    def __init__(self, skeleton: Any, tied: tuple[str, str] | None, entries: _Entries) -> None:
        """`skeleton` has the adapter; `tied` names embedding and head if they share a matrix."""
        self._entries = entries
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        self.layers = lora_layers(skeleton)
        self.whole = _brought_along(skeleton)
        self.untied = False
        self._stored_as: dict[str, str] = {}
        names = list(entries)
        if tied is not None:
            embedding, head = tied
            changed = {f"{path}.weight" for path in self.layers} | set(self.whole)
            # They need separate matrices if the adapter changes only one of them.
            self.untied = bool(changed & set(tied)) and not self._alike(embedding, head)
            if head not in entries:
                self._stored_as[head] = embedding
                names += [head] if self.untied else []
        self.names = tuple(names)
        self.vocabulary = skeleton.config.get_text_config().vocab_size

    def _alike(self, one: str, other: str) -> bool:
        whole = self.whole
        return one in whole and other in whole and torch.equal(whole[one], whole[other])

    @property
    def complete(self) -> bool:
        """Whether all tensors that the adapter changes are stored under the names of modules."""
        changed = [*(f"{path}.weight" for path in self.layers), *self.whole]
        return all(self._stored_as.get(name, name) in self._entries for name in changed)

    def entry(self, name: str) -> TensorEntry:
        """Return the stored tensor that a merged tensor is computed from."""
        return self._entries[self._stored_as.get(name, name)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.whole[name].shape) if name in self.whole else self.entry(name).shape

    def tensor(self, name: str) -> Tensor:
        """Return a merged tensor; in float32 if the adapter changes it."""
        if (own := self.whole.get(name)) is not None:
            return own
        path, _, part = name.rpartition(".")
        return self._merged(path)[part] if path in self.layers else self._read(name)

    def _merged(self, path: str) -> dict[str, Tensor]:
        """Return the merged parameters of a layer."""
        if self._last[0] != path:
            layer = self.layers[path]
            inner = layer.get_base_layer()
            held = [part for part in ("weight", "bias") if getattr(inner, part, None) is not None]
            for part in held:
                stored = self._read(f"{path}.{part}").float()
                setattr(inner, part, nn.Parameter(stored, requires_grad=False))
            layer.merge(safe_merge=True, adapter_names=[META_ADAPTER_NAME])
            self._last = path, {part: getattr(inner, part).data for part in held}
            for part in held:  # or the whole model would accumulate in memory
                setattr(inner, part, nn.Parameter(torch.empty(0), requires_grad=False))
        return self._last[1]

    def _read(self, name: str) -> Tensor:
        from safetensors import safe_open

        stored = self._stored_as.get(name, name)
        with safe_open(self._entries[stored].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor


def _lay_out(config: Any, adapter: Path, entries: _Entries) -> _Weights | None:
    """Return the merged tensors; `None` if they cannot be merged one tensor at a time."""
    settings = read_adapter_config(str(adapter))
    if (
        settings.trainable_token_indices
        or settings.target_parameters
        or settings.layer_replication
        or settings.ensure_weight_tying
        or settings.bias != "none"
        or variants(settings)
        or settings.init_lora_weights not in BASE_PRESERVING_INITS
        or holds_base_weights(adapter, config.get_text_config().vocab_size)
    ):
        return None
    if settings.lora_bias:
        raise ConfigError(
            f"{adapter} has biases (lora_bias), for which the layers of the model have no place",
            hint=f"use it without merging: --model {adapter}",
        )
    text = config.get_text_config()
    text.vocab_size = adapter_vocab_size(adapter) or text.vocab_size
    with torch.device("meta"):
        skeleton = auto_model_class(config).from_config(config, dtype=torch.float32)
    names = {module: f"{path}.weight" for path, module in skeleton.named_modules()}
    ends = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    tied = (names[ends[0]], names[ends[1]]) if ends[0].weight is ends[1].weight else None
    inject_adapter(str(adapter), skeleton)
    weights = _Weights(skeleton, tied, entries)
    return weights if weights.complete else None


def _brought_along(skeleton: Any) -> dict[str, Tensor]:
    """Return the tensors that an adapter holds in full, by their names in the model."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    whole: dict[str, Tensor] = {}
    inside: list[str] = []
    for path, module in skeleton.named_modules():
        if isinstance(module, LoraLayer | ModulesToSaveWrapper):
            inside.append(f"{path}.")
        if isinstance(module, ModulesToSaveWrapper):
            own = module.modules_to_save[META_ADAPTER_NAME].named_parameters()
            whole |= {f"{path}.{name}": tensor.detach() for name, tensor in own}
    # A resized embedding is saved although the adapter's config does not name it.
    return whole | {
        name: tensor.detach()
        for name, tensor in skeleton.named_parameters()
        if not tensor.is_meta and not name.startswith(tuple(inside))
    }


def _write_files(
    weights: _Weights, target: Path, dtype: torch.dtype, progress: ProgressCallback
) -> dict[str, list[str]]:
    """Write the tensors in the same shards as the base; return the names in each file."""
    files: dict[str, list[str]] = defaultdict(list)
    stored: Counter[str] = Counter()
    for name in weights.names:
        entry = weights.entry(name)
        files[entry.file.name].append(name)
        stored[entry.dtype] += entry.bytes
    main = stored.most_common(1)[0][0]
    done = 0
    for file, names in files.items():
        types = (weights.entry(name).dtype for name in names)
        kinds = [dtype_name(dtype) if kind == main else kind for kind in types]
        shapes = [weights.shape(name) for name in names]
        layout = dict(zip(names, zip(kinds, shapes, strict=True), strict=True))
        with SafetensorsWriter(target / file, layout) as writer:
            for name in names:
                writer.write(weights.tensor(name))
                done += weights.entry(name).bytes
                progress(Progress("merging", done, stored.total(), "B"))
    return files


def _write_index(files: Mapping[str, list[str]], size: int, target: Path) -> None:
    if len(files) == 1:
        return
    places = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (target / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_config(base: Path, target: Path, dtype: torch.dtype, weights: _Weights) -> None:
    """Write the base's `config.json` with type, tying and vocabulary size updated."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    text = config.get("text_config", config)
    if weights.untied:
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    text["vocab_size"] = weights.vocabulary
    (target / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _merge_at_once(base: Path, adapter: Path, target: Path, dtype: torch.dtype) -> MergedWeights:
    """Merge the whole model with PEFT, in float32: for adapters beyond single tensors."""
    model = read_original_weights(base, torch.float32)
    merged = attach_static_adapter(str(adapter), model, quantised=False)
    separate_shared_weights(merged)
    merged.to(dtype).save_pretrained(target)
    return MergedWeights(0, (), sum(file.stat().st_size for file in model_files(target)))
