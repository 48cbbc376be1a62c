"""Reads a LoRA adapter from a folder in PEFT's format, and says why where it cannot be used."""

from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.engine.batching.forward.lora import LoraAdapter, LoraWeights
from llmctl.engine.models.adapter_metadata import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmctl.engine.models.weight_files import read_entries
from llmctl.errors import ConfigError

META_ADAPTER_NAME = "a"
"""The name an adapter has on a skeleton."""
BASE_PRESERVING_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base model's weights as they are."""


def read_adapter(path: str, model: Any) -> LoraAdapter:
    """Read what an adapter adds to each linear layer of `model`, which is only looked at.

    PEFT itself lays the adapter out, on a copy of the model without memory: its patterns of
    ranks, scalings and layers mean here what they mean there.

    Raises:
        ConfigError: it is no adapter, one for another model, or of a kind that cannot be put on
            and taken off by request.
    """
    if (reason := unsupported_per_request(path)) is not None:
        raise _unfit(path, reason)
    with torch.device("meta"):
        skeleton = type(model)(deepcopy(model.config))
    inject_adapter(path, skeleton)
    return _deltas(path, skeleton)


def unsupported_per_request(path: str) -> str | None:
    """Say why an adapter cannot be put on and taken off by request, or return `None`.

    That takes low-rank matrices beside the base model's own weights, and nothing else.

    Raises:
        ConfigError: it is no LoRA adapter in PEFT's format.
    """
    from safetensors import SafetensorError

    config = read_adapter_config(path)
    try:
        names = read_entries([Path(path).expanduser() / ADAPTER_WEIGHTS])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot put {path} on a model: {ADAPTER_WEIGHTS}: {error}") from error
    return _more_than_matrices(config, names)


def read_adapter_config(path: str) -> Any:
    """Read PEFT's description of a LoRA adapter.

    Raises:
        ConfigError: the folder holds none, or an adapter of another kind.
    """
    from peft import PeftConfig

    folder = Path(path).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"{path} is no adapter folder: it has no {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"{path} has no {ADAPTER_WEIGHTS}",
            hint="load it with PEFT and save it again with save_pretrained()",
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}/{ADAPTER_CONFIG} cannot be read: {error}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(f"{path} is a {kind} adapter; LoRA adapters alone are supported")
    return config


def inject_adapter(path: str, skeleton: Any) -> None:
    """Lay an adapter's own tensors out on a model on the meta device, under the key `a`.

    Raises:
        ConfigError: it was trained on another model.
    """
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_adapter_config(path)
    try:
        # Saved under the names that the modules have within PEFT's own wrapper.
        state = {
            name.removeprefix("base_model.model."): tensor
            for name, tensor in load_file(Path(path).expanduser() / ADAPTER_WEIGHTS).items()
        }
        config.init_lora_weights = False
        inject_adapter_in_model(config, skeleton, META_ADAPTER_NAME, low_cpu_mem_usage=True)
        for layer in lora_layers(skeleton).values():
            # PEFT moves an adapter to where the weight beside it is, and to its type.
            layer.get_base_layer().weight = nn.Parameter(torch.empty(0))
        result: Any = set_peft_model_state_dict(
            skeleton, state, META_ADAPTER_NAME, low_cpu_mem_usage=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot put {path} on this model: {reason}") from error
    if result.unexpected_keys:
        raise ConfigError(
            f"{path} was trained on another model: this one has no {result.unexpected_keys[0]}"
        )


def attach_static_adapter(path: str, model: Any, *, quantised: bool) -> Any:
    """Put an adapter of any LoRA kind on a model that keeps it; return the model.

    It goes into the weights, or beside them where those are quantised: writing into 4 bits would
    round what was learnt away.

    Raises:
        ConfigError: it was trained on another model, or does not go with the quantisation.
    """
    from peft import PeftModel

    if read_adapter_config(path).use_dora and getattr(model, "is_loaded_in_8bit", False):
        # PEFT 0.21 loses the scales of the 8-bit weights on the way.
        raise ConfigError(
            f"{path} uses DoRA, which does not go with --quant 8bit",
            hint=f"--quant 4bit or none, or `llmctl models merge {path} -o FOLDER`",
        )
    rows = adapter_vocab_size(Path(path).expanduser())
    try:
        if rows not in (None, model.get_input_embeddings().weight.shape[0]):
            model.resize_token_embeddings(rows, mean_resizing=False)
        adapted: Any = PeftModel.from_pretrained(model, path)
        return adapted.base_model.model if quantised else adapted.merge_and_unload()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot put {path} on this model: {reason}") from error


def adapter_vocab_size(folder: Path) -> int | None:
    """Return how many tokens the embedding has that an adapter brings along, if it does."""
    entries = read_entries([folder / ADAPTER_WEIGHTS])
    return next((e.shape[0] for n, e in entries.items() if n.endswith("embed_tokens.weight")), None)


def _more_than_matrices(config: Any, names: Collection[str]) -> str | None:
    foreign = next((n for n in names if ".lora_A." not in n and ".lora_B." not in n), None)
    reasons = {
        "it uses DoRA": config.use_dora,
        "it trained whole modules beside LoRA (modules_to_save)": config.modules_to_save,
        "it trained single tokens (trainable_token_indices)": config.trainable_token_indices,
        "it trained parameters of no linear layer (target_parameters)": config.target_parameters,
        "it trained biases": config.bias != "none" or config.lora_bias,
        "it repeats layers (layer_replication)": config.layer_replication,
        f"init_lora_weights={config.init_lora_weights!r} changed the base model's weights": (
            config.init_lora_weights not in BASE_PRESERVING_INITS
        ),
        f"it holds {foreign}, which is no LoRA matrix of a linear layer": foreign,
    }
    return next((reason for reason, found in reasons.items() if found), None)


def _deltas(path: str, skeleton: Any) -> LoraAdapter:
    deltas = {}
    for name, layer in lora_layers(skeleton).items():
        if layer.lora_variant or META_ADAPTER_NAME not in layer.lora_A:
            raise _unfit(path, f"what it adds to {name} is more than two matrices")
        down: Tensor = layer.lora_A[META_ADAPTER_NAME].weight.detach()
        up: Tensor = layer.lora_B[META_ADAPTER_NAME].weight.detach()
        if down.is_meta or up.is_meta:
            raise ConfigError(f"{path} was trained on another model: it has nothing for {name}")
        deltas[name] = LoraWeights(down.T, up.T * layer.scaling[META_ADAPTER_NAME])
    return deltas


def lora_layers(model: Any) -> dict[str, Any]:
    """Return PEFT's layers by the path of the layer they stand for."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def _unfit(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be put on and taken off by request: {reason}",
        hint=f"give {path} as --model, which puts it on for good, or merge it: "
        f"llmctl models merge {path} -o FOLDER",
    )
