"""Loading of LoRA adapters in PEFT's format."""

import logging
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.engine.batching.forward.lora import LoraAdapter, LoraWeights
from llmctl.engine.loading.adapter_config import (
    SINGLE_EXPERT,
    read_adapter_config,
    unsupported_per_request,
)
from llmctl.engine.models import model_folder
from llmctl.engine.models.adapter_metadata import ADAPTER_WEIGHTS
from llmctl.engine.models.weight_files import read_entries
from llmctl.errors import ConfigError

_log = logging.getLogger(__name__)

META_ADAPTER_NAME = "a"
"""Name of the adapter that `inject_adapter` adds to a model."""


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
    if any(".base_layer." in name or SINGLE_EXPERT.search(name) for name in names):
        return True
    config = read_adapter_config(str(folder))
    return bool(config.modules_to_save) and adapter_vocab_size(folder) not in (None, vocab_size)


_VOCABULARY = re.compile(
    r"(?:embed_tokens|wte|embed_in|lm_head|embed_out)(?:\.base_layer|\.modules_to_save)?\.weight$"
)


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


def read_own_tokenizer(adapter: str | None, tokenizer: Any, *, trust_remote_code: bool) -> Any:
    """Return the tokenizer in an adapter's folder, or that of its model if there is none.

    Args:
        adapter: folder of the adapter.
        tokenizer: of the model; its chat template is taken where the adapter has none.
    """
    from transformers import AutoTokenizer

    folder = None if adapter is None else Path(adapter).expanduser()
    if folder is None or not folder.is_dir():
        return tokenizer
    if not model_folder.has_tokenizer(model_folder.file_names(folder)):
        return tokenizer
    own = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if own.chat_template is None:  # some tools do not save it
        own.chat_template = tokenizer.chat_template
    return own


_SAMPLE = (
    "In 2024,  3 caf\u00e9s sold 12.50 kg of\n    \u4f60\u597d don't <|x|>\r\n"
    "def f(x):\n\treturn x ** 2  # \u041f\u0440\u0438\u0432\u0435\u0442 "
    "\uc548\ub155 \U0001f642 'Ll"
)


def tokenizer_difference(own: Any, other: Any) -> str | None:
    """Describe where one tokenizer gives other tokens than another; `None` if nowhere found."""
    mine, others = own.get_vocab(), other.get_vocab()
    moved = sum(mine[token] != others[token] for token in mine.keys() & others.keys())
    counts = {
        "more tokens": len(mine.keys() - others.keys()),
        "fewer tokens": len(others.keys() - mine.keys()),
        "tokens with another id": moved,
    }
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    if not parts and own(_SAMPLE).input_ids != other(_SAMPLE).input_ids:
        parts.append("another division of text into tokens")
    if own.eos_token != other.eos_token:
        parts.append(f"another end token ({own.eos_token!r} for {other.eos_token!r})")
    if own.chat_template != other.chat_template:
        parts.append("another chat template")
    return ", ".join(parts) or None


def warn_of_other_tokenizer(adapter: str, tokenizer: Any) -> None:
    """Log where the tokenizer in an adapter's folder differs from the one that is used with it."""
    own = read_own_tokenizer(adapter, tokenizer, trust_remote_code=False)
    if difference := tokenizer_difference(own, tokenizer):
        _log.warning(
            "%s was saved with another tokenizer than is used for it: %s; --model MODEL --adapter "
            "%s uses its own",
            *(adapter, difference, adapter),
        )


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
