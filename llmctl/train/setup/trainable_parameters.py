"""Which parameters learn, by the method that was chosen?"""

import warnings
from typing import Any

import torch
from torch import nn

from llmctl.config import TrainConfig
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.errors import ConfigError
from llmctl.train.kernels import attention
from llmctl.train.kernels.lora import use_fused_lora
from llmctl.train.kernels.memory_efficient_layers import use_memory_efficient_layers


def make_trainable(model: Any, config: TrainConfig, adapter: str | None) -> Any:
    """Return the model with what is to learn, in training mode; the rest of it is frozen.

    Adapters are in float32 whatever the model is in: their steps are small.

    Args:
        model: all of it frozen.
        adapter: folder of an adapter that is taught further; its own rank and layers stay.

    Raises:
        ConfigError: the model has no such layers.
    """
    if config.method == "full":
        model.requires_grad_(True)
        return model.train()
    from peft import PeftModel, get_peft_model

    # The adapter begins the same however much chance was used up before.
    torch.manual_seed(config.seed)
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks the model by a name that Transformers 5.23 has changed.
            warnings.simplefilter("ignore", FutureWarning)
            if adapter is not None:
                return PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
            return get_peft_model(model, _lora(config)).train()
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        names = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        raise ConfigError(
            f"the model has no layers called {', '.join(config.target_modules)}",
            hint=f"it has {', '.join(sorted(names))}",
        ) from error


def _lora(config: TrainConfig) -> Any:
    from peft import LoraConfig, TaskType

    alpha: Any = config.lora_alpha
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules) or "all-linear",
        use_dora=config.method == "dora",
        use_rslora=config.method == "rslora",
        bias="none",
    )


def weights_dtype(config: TrainConfig) -> torch.dtype:
    """Return the type of the weights: what learns whole keeps float32, for its steps are small."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    return torch.float32 if config.method == "full" else dtype


def optimize_for_training(model: Any, config: TrainConfig, device_type: str) -> bool:
    """Let a model compute as it learns best on a kind of device; nothing of its numbers changes.

    Returns:
        Whether its parts are of several types, so that autocast must bring them together.
    """
    # What is sharded over devices is whole only inside its own module's forward.
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
    """Keep only what each layer begins with; the rest is computed again for its gradient."""
    # Not reentrant: that kind needs inputs with a gradient, which frozen embeddings do not give.
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:  # before transformers 5.23
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def count_trainable(config: TrainConfig, outline: ModelMetadata) -> int:
    """Count the parameters that will learn, from shapes alone. Raises as `make_trainable`."""
    if outline.adapter is not None:
        return outline.shape.adapter_parameters
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            outline.config, trust_remote_code=outline.spec.trust_remote_code
        )
        learning = make_trainable(model.requires_grad_(False), config, None)
    return sum(p.numel() for p in learning.parameters() if p.requires_grad)
