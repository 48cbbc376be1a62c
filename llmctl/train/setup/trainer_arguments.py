"""Translation of `TrainConfig` into Transformers' `TrainingArguments`."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainingArguments

from llmctl.config import TrainConfig

_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def training_arguments(
    config: TrainConfig,
    *,
    device: torch.device,
    folder: Path,
    steps: int,
    steps_per_epoch: int,
    micro_batch_size: int,
    accumulation: int,
    world_size: int,
    autocast: bool,
    create: Callable[..., TrainingArguments] = TrainingArguments,
) -> TrainingArguments:
    """Translate resolved settings. `TrainingCallback` decides when to log, evaluate and save.

    Args:
        accumulation: micro-batches of one device per step.
        autocast: the model has parts of several types.
        create: class or factory of the arguments.
    """
    return create(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=math.ceil(steps / steps_per_epoch),
        max_steps=steps,
        learning_rate=config.learning_rate or 0.0,
        lr_scheduler_type=config.scheduler
        if config.scheduler != "constant"
        else "constant_with_warmup",
        warmup_steps=int(steps * config.warmup_ratio),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm or math.inf,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        optim=_OPTIMIZERS[config.optimizer],
        neftune_noise_alpha=config.neftune_alpha,
        seed=config.seed,
        bf16=autocast and config.dtype == "bfloat16",
        fp16=config.dtype == "float16",
        use_cpu=device.type == "cpu",
        ddp_backend="gloo" if device.type == "cpu" and world_size > 1 else None,
        ddp_find_unused_parameters=False if world_size > 1 else None,
        fsdp=config.fsdp or "",
        fsdp_config=config.fsdp_config,
        deepspeed=config.deepspeed,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        log_level_replica="error",
    )
