"""Trainable parameters by method, and the kernels that a model trains with."""

import re
import warnings
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from llmctl.config import TrainConfig
from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.errors import ConfigError
from llmctl.train.kernels import attention
from llmctl.train.kernels.lora import use_fused_lora
from llmctl.train.kernels.memory_efficient_layers import use_memory_efficient_layers

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MAMBA_TYPES = frozenset(("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"))
_REFUSED_IN_MAMBA = frozenset(("out_proj", "conv1d"))
"""Layers that PEFT 0.21 does not adapt in models of these types."""


def make_trainable(model: Any, config: TrainConfig, adapter: str | None) -> Any:
    """Return the model with trainable parameters, in training mode; all others stay frozen.

    Adapters are in float32 for any type of the model: their updates are small.

    Args:
        model: with all parameters frozen.
        adapter: folder of an adapter to continue; its own rank and layers are used.

    Raises:
        ConfigError: the model does not have the chosen layers.
    """
    if config.method == "full":
        model.requires_grad_(True)
        return model.train()
    from peft import PeftModel, get_peft_model

    names = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    # The initial adapter must not depend on earlier use of the random generator.
    torch.manual_seed(config.seed)
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 uses a name that Transformers 5.23 has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            if adapter is not None:
                return PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
            return get_peft_model(model, _lora_config(config, model)).train()
    except ValueError as error:
        if "arget modules" in str(error):
            message = f"the model has no layers named {', '.join(config.target_modules)}"
        elif "is incompatible with" in str(error):  # PEFT's check of Mamba models
            message = f"LoRA does not support all layers of {model.config.model_type} models"
            names -= {"out_proj"}
        else:
            message = f"PEFT rejects these settings: {' '.join(str(error).split())}"
        options = " ".join(f"--target-modules {name}" for name in sorted(names))
        raise ConfigError(message, hint=f"choose from {options}") from error


def default_target_modules(model: Any) -> tuple[str, ...]:
    """Return the names of the layers that get an adapter by default.

    These are all linear layers but the output layer. In a mixture of experts PEFT's "all-linear"
    would take the router and the experts' matrices along, which are trained by name only; and in
    models like Mamba layers that PEFT refuses.
    """
    text = model.config.get_text_config(decoder=True)
    experts = {getattr(text, name, None) for name in _EXPERT_COUNTS} - {None}
    if not experts and text.model_type not in _MAMBA_TYPES:
        return ("all-linear",)
    head = model.get_output_embeddings()
    decoder = model.get_decoder()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    routers = {
        name.rsplit(".", 1)[-1]
        for name, module in decoder.named_modules()
        if "router" in name.rsplit(".", 1)[-1].lower()
        or "router" in type(module).__name__.lower()
        or (isinstance(module, nn.Linear) and module.out_features in experts)
    }
    refused = _REFUSED_IN_MAMBA if text.model_type in _MAMBA_TYPES else frozenset[str]()
    return tuple(sorted(names - routers - refused))


def parts_without_text(model: Any) -> tuple[str, ...]:
    """Return the names of the parts of a model that text does not pass: of images and audio."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    path = names[id(decoder)].split(".")
    parts = set()
    for name, module in model.named_modules():
        own = name.split(".")
        if list(module.children()) or module is head or own[: len(path)] == path:
            continue
        shared = next(n for n, (a, b) in enumerate(zip_longest(own, path)) if a != b)
        parts.add(".".join(own[: shared + 1]))
    return tuple(sorted(parts))


def _lora_config(config: TrainConfig, model: Any) -> Any:
    from peft import LoraConfig, TaskType

    alpha: Any = config.lora_alpha
    targets = config.target_modules or default_target_modules(model)
    excluded = "|".join(map(re.escape, parts_without_text(model)))
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=config.dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
        exclude_modules=rf"({excluded})(\..+)?" if excluded else None,
        use_dora=config.method == "dora",
        use_rslora=config.method == "rslora",
        bias="none",
    )


def weights_dtype(config: TrainConfig) -> torch.dtype:
    """Return the type of the weights: float32 for full fine-tuning, whose updates are small."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    return torch.float32 if config.method == "full" else dtype


def optimize_for_training(model: Any, config: TrainConfig, device_type: str) -> bool:
    """Replace layers by kernels that train faster or in less memory, with equal results.

    Returns:
        Whether autocast is needed, because parts of the model have different types.
    """
    # Sharded weights are complete only inside the forward of their own module.
    sharded = bool(config.fsdp or config.deepspeed)
    if device_type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(attention.register())
    fused = config.method != "full" and not sharded and use_fused_lora(model)
    if not sharded:
        use_memory_efficient_layers(model)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return not fused


def enable_gradient_checkpointing(model: Any) -> None:
    """Keep only the input of each layer; the backward pass recomputes the other activations."""
    # Not reentrant: that kind needs inputs with a gradient, which frozen embeddings do not have.
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:  # before transformers 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def count_trainable(config: TrainConfig, metadata: ModelMetadata) -> int:
    """Count the trainable parameters from shapes alone. Raises as `make_trainable`."""
    if metadata.adapter is not None:
        return metadata.shape.adapter_parameters
    with torch.device("meta"):
        model = auto_model_class(metadata.config).from_config(
            metadata.config, trust_remote_code=metadata.spec.trust_remote_code
        )
        trainable = make_trainable(model.requires_grad_(False), config, None)
    return sum(p.numel() for p in trainable.parameters() if p.requires_grad)
