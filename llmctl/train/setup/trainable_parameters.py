"""Trainable parameters by method, and the kernels that a model trains with."""

import re
import warnings
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
from llmctl.train.setup.target_modules import (
    UNREADABLE,
    default_target_modules,
    describe_mixture,
    parts_without_text,
)


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

    kind = model.config.get_text_config(decoder=True).model_type
    if unreadable := UNREADABLE.get(kind, frozenset()).intersection(config.target_modules or ()):
        raise ConfigError(
            f"PEFT cannot read back adapters of {', '.join(sorted(unreadable))} in {kind} models",
            hint=" ".join(f"--target-modules {name}" for name in default_target_modules(model)),
        )
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
    trainable = _trainable_skeleton(config, metadata)
    return sum(p.numel() for p in trainable.parameters() if p.requires_grad)


def mixture_note(config: TrainConfig, metadata: ModelMetadata) -> str | None:
    """Return which layers of a mixture of experts get an adapter; `None` for other models."""
    if metadata.adapter is not None or config.method == "full":
        return None
    return describe_mixture(_trainable_skeleton(config, metadata))


def _trainable_skeleton(config: TrainConfig, metadata: ModelMetadata) -> Any:
    with torch.device("meta"):
        model = auto_model_class(metadata.config).from_config(
            metadata.config, trust_remote_code=metadata.spec.trust_remote_code
        )
        return make_trainable(model.requires_grad_(False), config, None)
