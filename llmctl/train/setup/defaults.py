"""Values of the settings that were not given: from the adapter, the model, the data, the machine.

Each filled setting keeps the reason for its value, which the plan shows as its origin.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from llmctl.config import TrainConfig
from llmctl.config.finetune import TrainMethod, largest_divisor
from llmctl.config.settings import ResolvedConfig
from llmctl.data.dataset import TokenizedDataset
from llmctl.engine.loading.adapter_config import read_adapter_config
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.errors import ConfigError
from llmctl.percentiles import percentile
from llmctl.types import DType, TrainSetting

_DEFAULT_MAX_LENGTH = 2048
"""Tokens per row."""
_SATURATING_TOKENS_CPU = 1024
_SATURATING_TOKENS_GPU = 16384
"""Tokens of a micro-batch beyond which the device does not get faster."""
_LARGE_MODEL = 30e9
"""Parameters from which the learning rate is halved (Dettmers et al. 2023, table 9)."""
_LEARNING_RATES: Mapping[TrainMethod, float] = {"full": 2e-5, "dpo": 5e-6}
_ADAPTER_LEARNING_RATE = 2e-4
_MIN_EVALUATIONS = 4
_ADAPTER_ORIGIN = "the adapter"
_DTYPES: Mapping[torch.dtype, DType] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """The settings of a training, and the origin of each."""

    config: TrainConfig
    origins: Mapping[str, str]
    """Origin by field; the default for a field that is not in it."""

    def filled(self, origin: str, **values: object) -> "ResolvedSettings":
        """Return a copy with values for those of the fields that are `None` or `auto`."""
        missing = {n: v for n, v in values.items() if getattr(self.config, n) in (None, "auto")}
        return ResolvedSettings(
            replace(self.config, **missing),  # type: ignore[arg-type]
            {**self.origins, **dict.fromkeys(missing, origin)},
        )

    def listed(self) -> tuple[TrainSetting, ...]:
        """Return every setting that has an effect in this run."""
        config = self.config
        unused = {"dpo_beta"} if config.method != "dpo" else set()
        unused |= {"eval_fraction"} if config.eval_data else set()
        unused |= {"rank", "alpha", "dropout"} if config.method == "full" else set()
        return tuple(
            TrainSetting(f.name, getattr(config, f.name), self.origins.get(f.name, "default"))
            for f in fields(config)
            if f.name not in unused
        )


def settings_from_adapter(
    settings: ResolvedConfig[TrainConfig], adapter: str
) -> ResolvedConfig[TrainConfig]:
    """Take method, rank, alpha, dropout and layers from an adapter that the training continues.

    Raises:
        ConfigError: the adapter is not a LoRA adapter, or another value was chosen.
    """
    config = settings.values
    if config.method == "full":
        raise ConfigError(
            f"method full trains the weights of a model, and {adapter} is an adapter",
            hint=f"`llmctl models merge {adapter} -o FOLDER` makes it a model first",
        )
    fixed = _adapter_settings(adapter, config)
    differing = [
        f"{settings.origins[name]}: {name} is {_format(getattr(config, name))}, and the adapter "
        f"{adapter} has {_format(value)}"
        for name, value in fixed.items()
        if name in settings.origins and _comparable(getattr(config, name)) != _comparable(value)
    ]
    if differing:
        raise ConfigError(
            "\n".join(differing),
            hint="leave it out to continue the adapter; or `llmctl models merge` it first, and "
            "train a new adapter",
        )
    origins = {**dict.fromkeys(fixed, _ADAPTER_ORIGIN), **settings.origins}
    return ResolvedConfig(replace(config, **fixed), origins)


def _adapter_settings(adapter: str, config: TrainConfig) -> dict[str, Any]:
    """Return the settings that would create this adapter, from PEFT's `LoraConfig`."""
    lora = read_adapter_config(adapter)
    plain = "qlora" if config.method == "qlora" else "lora"  # the same adapter on other weights
    layers = lora.target_modules or ()
    return {
        "method": "dora" if lora.use_dora else "rslora" if lora.use_rslora else plain,
        "rank": lora.r,
        "alpha": float(lora.lora_alpha),
        "dropout": float(lora.lora_dropout),
        "target_modules": (layers,) if isinstance(layers, str) else tuple(sorted(layers)),
    }


def _comparable(value: object) -> object:
    return set(value) if isinstance(value, tuple) else value


def _format(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def resolve_for_model(
    settings: ResolvedConfig[TrainConfig], metadata: ModelMetadata
) -> ResolvedSettings:
    """Fill the settings that depend on the model and the machine.

    Raises:
        ConfigError: the model or the machine does not support a chosen value.
    """
    config, device = settings.values, metadata.device
    cuda = device.type == "cuda"
    resolved = ResolvedSettings(config, settings.origins)
    context = metadata.shape.context_length
    if config.max_length is not None and config.max_length > context:
        raise ConfigError(
            f"max_length is {config.max_length}, and the model's context is {context} tokens",
            hint=f"--max-length {context}",
        )
    length = min(context, _DEFAULT_MAX_LENGTH)
    parameters = metadata.shape.linear_parameters + metadata.shape.other_parameters
    adapter_rate = _ADAPTER_LEARNING_RATE / (2 if parameters >= _LARGE_MODEL else 1)
    rate = _LEARNING_RATES.get(config.method, adapter_rate)
    resolved = (
        resolved.filled(
            "the model's context" if length == context else "default", max_length=length
        )
        .filled(f"for {config.method}", learning_rate=rate)
        .filled(f"for {config.method}", quant=config.weights_quant)
        .filled("twice the rank", alpha=config.lora_alpha)
        .filled(f"on {device.type}", gradient_checkpointing=cuda)
        .filled("on this machine", dtype=_DTYPES[metadata.dtype])
        .filled("on this machine", attention=_attention(config, metadata.config, cuda=cuda))
        .filled(f"on {device.type}", optimizer="paged_adamw_8bit" if cuda else "adamw")
    )
    if device.type == "cpu" and resolved.config.dtype == "float16":
        raise ConfigError("a CPU cannot train in float16", hint="--dtype bfloat16 or float32")
    if not cuda and resolved.config.optimizer == "paged_adamw_8bit":
        raise ConfigError(f"paged_adamw_8bit needs CUDA, not {device}", hint="--optimizer adamw")
    return resolved


def _attention(config: TrainConfig, model_config: Any, *, cuda: bool) -> str:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    flash = cuda and importlib.util.find_spec("flash_attn") is not None
    if config.attention == "flash" and not flash:
        raise ConfigError(
            "flash attention is not installed, or there is no CUDA device",
            hint="pip install flash-attn, or leave out --attention",
        )
    if config.attention != "auto":
        return config.attention
    # Models without attention, such as Mamba, refuse any other implementation than eager.
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    if not getattr(model_class, "_supports_sdpa", True):
        return "eager"
    return "flash" if flash else "sdpa"


def resolve_for_data(
    resolved: ResolvedSettings, prepared: TokenizedDataset, world_size: int, device_type: str
) -> ResolvedSettings:
    """Fill the micro-batch size by the length of the rows.

    Raises:
        ConfigError: the batch cannot be divided over devices and micro-batches.
    """
    config = resolved.config
    if config.batch_size % world_size:
        raise ConfigError(
            f"a batch of {config.batch_size} rows is not divisible by {world_size} devices",
            hint=f"--batch-size {-(-config.batch_size // world_size) * world_size}",
        )
    rows = config.batch_size // world_size
    if config.micro_batch_size is not None and rows % config.micro_batch_size:
        raise ConfigError(
            f"each of {world_size} devices has {rows} rows of a batch, which are not divisible by "
            f"the micro-batch size {config.micro_batch_size}",
            hint=f"--micro-batch-size {largest_divisor(rows, config.micro_batch_size)}",
        )
    assert config.max_length is not None
    length = (
        percentile(prepared.train.lengths.tolist(), 95) if not config.packing else config.max_length
    )
    tokens = _SATURATING_TOKENS_CPU if device_type == "cpu" else _SATURATING_TOKENS_GPU
    most = max(1, int(tokens // length))
    return resolved.filled("rows of this length", micro_batch_size=largest_divisor(rows, most))


def resolve_schedule(
    resolved: ResolvedSettings, steps_per_epoch: int, *, has_eval: bool
) -> tuple[ResolvedSettings, int]:
    """Fill the intervals of evaluations and checkpoints; return also the number of steps."""
    config = resolved.config
    steps = math.ceil(config.epochs * steps_per_epoch)
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    interval = max(1, min(steps_per_epoch, steps // _MIN_EVALUATIONS))
    resolved = resolved.filled("from the steps", eval_every=interval if has_eval else None)
    every = resolved.config.eval_every or interval
    return resolved.filled("as eval_every", save_every=every), steps
