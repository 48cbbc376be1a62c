"""Loading of LoRA adapters in PEFT's format."""

import logging
import re
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

_log = logging.getLogger(__name__)

META_ADAPTER_NAME = "a"
"""Name of the adapter that `inject_adapter` adds to a model."""
BASE_PRESERVING_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base model's weights."""


def read_adapter(path: str, model: Any) -> LoraAdapter:
    """Read the LoRA weights of each linear layer of `model`, which is not changed.

    PEFT itself adds the adapter, to a copy of the model on the meta device, so its patterns of
    ranks, scalings and layers have the same meaning as in PEFT.

    Raises:
        ConfigError: it is not an adapter of this model, or cannot be selected per request.
    """
    if (reason := unsupported_per_request(path)) is not None:
        raise _unsupported(path, reason)
    with torch.device("meta"):
        meta_model = type(model)(deepcopy(model.config))
    inject_adapter(path, meta_model)
    return _lora_weights(path, meta_model)


def unsupported_per_request(path: str) -> str | None:
    """Return why an adapter cannot be selected per request, or `None` if it can.

    An adapter that can consists only of low-rank matrices for linear layers.

    Raises:
        ConfigError: it is not a LoRA adapter in PEFT's format.
    """
    from safetensors import SafetensorError

    config = read_adapter_config(path)
    _warn_of_overlapping_patterns(path, config)
    try:
        names = read_entries([Path(path).expanduser() / ADAPTER_WEIGHTS])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot load the adapter {path}: {ADAPTER_WEIGHTS}: {error}") from error
    return _unsupported_part(config, names)


def _warn_of_overlapping_patterns(path: str, config: Any) -> None:
    """Log patterns of which several match one layer.

    PEFT takes the first, and sorts them when it saves: they may not mean what they meant in
    training.
    """
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = list(getattr(config, name, None) or {})
        for first in patterns:
            for second in patterns:
                if first != second and re.search(rf"(?:^|\.){first}$", second):
                    _log.warning(
                        "%s: the keys %r and %r of %s match the same layers, and PEFT has sorted "
                        "them; if they were in another order in training, the adapter differs",
                        *(path, first, second, name),
                    )


def read_adapter_config(path: str) -> Any:
    """Read PEFT's config of a LoRA adapter.

    Raises:
        ConfigError: the folder has no adapter, or one of another kind.
    """
    from peft import PeftConfig

    folder = Path(path).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"{path} is not the folder of an adapter: it has no {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"{path} has no {ADAPTER_WEIGHTS}",
            hint="load it with PEFT and save it with save_pretrained()",
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}/{ADAPTER_CONFIG} cannot be read: {error}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(
            f"{path} is a {kind} adapter; only LoRA adapters are supported", hint=_merge_hint(path)
        )
    if str(config.init_lora_weights).startswith("pissa_niter"):
        raise ConfigError(
            f"{path} was initialised with {config.init_lora_weights!r}: PEFT computes its base "
            "weights anew at every load, from random numbers",
            hint="save it as plain LoRA with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    return config


def _merge_hint(path: str) -> str:
    """Return the lines of PEFT that make a model of an adapter, if its kind can be merged."""
    return (
        "where its kind can be merged, PEFT makes a model of it: "
        f"AutoPeftModelForCausalLM.from_pretrained({path!r}).merge_and_unload()"
        ".save_pretrained('FOLDER')"
    )


def inject_adapter(path: str, meta_model: Any) -> None:
    """Add an adapter and its weights to a model on the meta device, as `META_ADAPTER_NAME`.

    Raises:
        ConfigError: it was trained on another model.
    """
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_adapter_config(path)
    try:
        # The names in the file are those of the modules in PEFT's wrapper.
        state = {
            name.removeprefix("base_model.model."): tensor
            for name, tensor in load_file(Path(path).expanduser() / ADAPTER_WEIGHTS).items()
        }
        config.init_lora_weights = False
        inject_adapter_in_model(config, meta_model, META_ADAPTER_NAME, low_cpu_mem_usage=True)
        for layer in lora_layers(meta_model).values():
            # PEFT moves an adapter to the device and dtype of the layer's weight.
            layer.get_base_layer().weight = nn.Parameter(torch.empty(0))
        result: Any = set_peft_model_state_dict(
            meta_model, state, META_ADAPTER_NAME, low_cpu_mem_usage=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot add the adapter {path} to this model: {reason}") from error
    if result.unexpected_keys:
        raise ConfigError(
            f"{path} was trained on another model: this model has no {result.unexpected_keys[0]}"
        )


def attach_static_adapter(path: str, model: Any, *, quantised: bool) -> Any:
    """Add an adapter of any LoRA kind permanently to a model; return the model.

    It is merged into the weights, unless they are quantised: in 4 bits the rounding would remove
    most of the adapter.

    Raises:
        ConfigError: it was trained on another model, or does not support the quantisation.
    """
    from peft import PeftModel

    config = read_adapter_config(path)
    if config.use_dora and getattr(model, "is_loaded_in_8bit", False):
        # PEFT 0.21 loses the scales of the 8-bit weights.
        raise ConfigError(
            f"{path} uses DoRA, which does not support --quant 8bit",
            hint=f"--quant 4bit or none, or `llmctl models merge {path} -o FOLDER`",
        )
    vocab_size = adapter_vocab_size(Path(path).expanduser())
    try:
        if vocab_size not in (None, model.get_input_embeddings().weight.shape[0]):
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        adapted: Any = PeftModel.from_pretrained(model, path)
        if quantised or config.lora_bias:  # a bias has no place in a layer without one
            return adapted.base_model.model
        separate_shared_weights(adapted.base_model.model)
        return adapted.merge_and_unload()
    except IndexError as error:
        raise ConfigError(
            f"{path} trained tokens {config.trainable_token_indices}, some beyond the model's "
            "vocabulary, and its file has no embedding for them",
            hint="save it with PEFT's save_pretrained(..., save_embedding_layers=True)",
        ) from error
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot add the adapter {path} to this model: {reason}") from error


def separate_shared_weights(model: Any) -> None:
    """Give each layer a weight of its own where layers share one. Tied embeddings stay tied if none
    is adapted.

    `layer_replication` makes layers share weights. Merging would add the adapter of one layer to
    all of them, and a file holds each weight once.

    Args:
        model: of Transformers, with or without PEFT's layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses: dict[int, list[tuple[Any, str]]] = {}
    adapted: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            adapted.add(id(module.get_base_layer()))
        for name, weight in module.named_parameters(recurse=False):
            uses.setdefault(id(weight), []).append((module, name))
    ends = [_base_layer(model.get_input_embeddings()), _base_layer(model.get_output_embeddings())]
    for shared in uses.values():
        users = [module for module, _ in shared]
        are_tied = all(any(user is end for end in ends) for user in users)
        if len(users) < 2 or (are_tied and not any(id(user) in adapted for user in users)):
            continue
        kept = next((user for user in users if id(user) not in adapted), users[0])
        for module, name in shared:
            if module is not kept:
                copy = getattr(module, name).detach().clone()
                setattr(module, name, nn.Parameter(copy, requires_grad=False))
    if ends[1] is not None and ends[0].weight is not ends[1].weight:
        model.config.get_text_config(decoder=True).tie_word_embeddings = False


def _base_layer(module: Any) -> Any:
    """Return the layer of the model inside a layer of PEFT."""
    for name in ("base_layer", "original_module"):
        module = getattr(module, name, module)
    return module


def adapter_vocab_size(folder: Path) -> int | None:
    """Return the vocabulary size of an adapter's own embedding or head; `None` if it has none."""
    entries = read_entries([folder / ADAPTER_WEIGHTS])
    return next((e.shape[0] for name, e in entries.items() if _VOCABULARY.search(name)), None)


def holds_base_weights(folder: Path, vocab_size: int) -> bool:
    """Whether an adapter brings weights of the layers that it adapts, or trained a new vocabulary.

    PEFT saves the weights of an adapted embedding or head with the adapter. Adapters of single
    experts count too: their names are those of other layers.
    """
    names = read_entries([folder / ADAPTER_WEIGHTS])
    if any(".base_layer." in name or _SINGLE_EXPERT.search(name) for name in names):
        return True
    config = read_adapter_config(str(folder))
    return bool(config.modules_to_save) and adapter_vocab_size(folder) not in (None, vocab_size)


_SINGLE_EXPERT = re.compile(r"\.experts\.\d+\.")
"""In names of Transformers 4, where each expert had layers of its own; PEFT converts them."""
_VOCABULARY = re.compile(
    r"(?:embed_tokens|wte|embed_in|lm_head|embed_out)(?:\.base_layer|\.modules_to_save)?\.weight$"
)


def _unsupported_part(config: Any, names: Collection[str]) -> str | None:
    other = next((n for n in names if ".lora_A." not in n and ".lora_B." not in n), None)
    experts = any(map(_SINGLE_EXPERT.search, names))
    reasons = {
        "it uses DoRA": config.use_dora,
        "it trained whole modules beside LoRA (modules_to_save)": config.modules_to_save,
        "it trained single tokens (trainable_token_indices)": config.trainable_token_indices,
        "it trained parameters outside linear layers (target_parameters)": config.target_parameters,
        "it trained biases": config.bias != "none" or config.lora_bias,
        "it repeats layers (layer_replication)": config.layer_replication,
        "it trained the experts of a mixture one by one": experts,
        f"init_lora_weights={config.init_lora_weights!r} changed the base model's weights": (
            config.init_lora_weights not in BASE_PRESERVING_INITS
        ),
        f"it has {other}, which is not a LoRA matrix of a linear layer": other,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _lora_weights(path: str, meta_model: Any) -> LoraAdapter:
    weights = {}
    for name, layer in lora_layers(meta_model).items():
        if layer.lora_variant or META_ADAPTER_NAME not in layer.lora_A:
            raise _unsupported(path, f"its weights for {name} are more than two matrices")
        down: Tensor = layer.lora_A[META_ADAPTER_NAME].weight.detach()
        up: Tensor = layer.lora_B[META_ADAPTER_NAME].weight.detach()
        if down.is_meta or up.is_meta:
            raise ConfigError(f"{path} was trained on another model: it has no weights for {name}")
        weights[name] = LoraWeights(down.T, up.T * layer.scaling[META_ADAPTER_NAME])
    return weights


def lora_layers(model: Any) -> dict[str, Any]:
    """Return PEFT's LoRA layers by the path of the layer that they replace."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def _unsupported(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be selected per request: {reason}",
        hint=f"give {path} as --model, which adds it permanently, or merge it: "
        f"llmctl models merge {path} -o FOLDER",
    )
