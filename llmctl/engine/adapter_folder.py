"""Reads a LoRA adapter from a folder in PEFT's format, and says why where it cannot be used."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.engine.batching.adapters import Adapter, Delta
from llmctl.errors import ConfigError

_KEY = "a"
_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base model's weights as they are."""


def read_adapter(path: str, model: Any) -> Adapter:
    """Read what an adapter adds to each linear layer of `model`, which is only looked at.

    PEFT itself lays the adapter out, on a copy of the model without memory: its patterns of
    ranks, scalings and layers mean here what they mean there.

    Raises:
        ConfigError: it is no adapter, one for another model, or of a kind that cannot be put on
            and taken off by request.
    """
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path).expanduser()
    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{path} is no adapter folder: it has no adapter_config.json")
    if not weights.is_file():
        raise ConfigError(
            f"{path} has no adapter_model.safetensors",
            hint="load it with PEFT and save it again with save_pretrained()",
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        state = load_file(weights)
        _check_kind(path, config, state)
        config.init_lora_weights = False
        with torch.device("meta"):
            skeleton = type(model)(deepcopy(model.config))
        inject_adapter_in_model(config, skeleton, _KEY, low_cpu_mem_usage=True)
        for layer in _lora_layers(skeleton).values():
            # PEFT moves an adapter to where the weight beside it is, and to its type.
            layer.get_base_layer().weight = nn.Parameter(torch.empty(0))
        result: Any = set_peft_model_state_dict(skeleton, state, _KEY, low_cpu_mem_usage=True)
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot put {path} on this model: {reason}") from error
    if result.unexpected_keys:
        raise ConfigError(
            f"{path} was trained on another model: this one has no {result.unexpected_keys[0]}"
        )
    return _deltas(path, skeleton)


def _check_kind(path: str, config: Any, state: dict[str, Tensor]) -> None:
    """Refuse what is more than low-rank matrices beside the base model's own weights."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(f"{path} is a {kind} adapter; LoRA adapters alone are supported")
    foreign = next((k for k in state if ".lora_A." not in k and ".lora_B." not in k), None)
    reasons = {
        "it uses DoRA": config.use_dora,
        "it trained whole modules beside LoRA (modules_to_save)": config.modules_to_save,
        "it trained single tokens (trainable_token_indices)": config.trainable_token_indices,
        "it trained parameters of no linear layer (target_parameters)": config.target_parameters,
        "it trained biases": config.bias != "none" or config.lora_bias,
        "it repeats layers (layer_replication)": config.layer_replication,
        f"init_lora_weights={config.init_lora_weights!r} changed the base model's weights": (
            config.init_lora_weights not in _INITS
        ),
        f"it holds {foreign}, which is no LoRA matrix of a linear layer": foreign,
    }
    if (reason := next((text for text, found in reasons.items() if found), None)) is not None:
        raise _unfit(path, reason)


def _deltas(path: str, skeleton: Any) -> Adapter:
    deltas = {}
    for name, layer in _lora_layers(skeleton).items():
        if layer.lora_variant or _KEY not in layer.lora_A:
            raise _unfit(path, f"what it adds to {name} is more than two matrices")
        down: Tensor = layer.lora_A[_KEY].weight.detach()
        up: Tensor = layer.lora_B[_KEY].weight.detach()
        if down.is_meta or up.is_meta:
            raise ConfigError(f"{path} was trained on another model: it has nothing for {name}")
        deltas[name] = Delta(down.T, up.T * layer.scaling[_KEY])
    return deltas


def _lora_layers(skeleton: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in skeleton.named_modules() if isinstance(m, LoraLayer)}


def _unfit(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be put on and taken off by request: {reason}",
        hint="merge it into its model with PEFT's merge_and_unload(), and load the merged model",
    )
