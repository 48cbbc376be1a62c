"""What do the settings that nobody chose become, with this model, this data and this machine?"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from llmctl.config import TrainConfig
from llmctl.config.finetune import TrainMethod, largest_divisor
from llmctl.config.settings import ResolvedConfig
from llmctl.data.dataset import TokenizedDataset
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.errors import ConfigError
from llmctl.types import DType, TrainSetting

_LONGEST = 2048
"""Tokens per row where nobody says more."""
_BUSY_TOKENS = {"cpu": 1024}
_BUSY_TOKENS_GPU = 16384
"""Tokens of a micro-batch past which a device gets no faster."""
_LARGE = 30e9
"""Parameters from which on the learning rate is halved (Dettmers et al. 2023, table 9)."""
_RATES: Mapping[TrainMethod, float] = {"full": 2e-5, "dpo": 5e-6}
_ADAPTER_RATE = 2e-4
_LEAST_MEASUREMENTS = 4
_TYPES: Mapping[torch.dtype, DType] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """Settings without gaps, and where each came from."""

    config: TrainConfig
    origins: Mapping[str, str]
    """By field; what is not in it is the default."""

    def filled(self, why: str, **values: object) -> "ResolvedSettings":
        """Fill gaps; what a person chose stays."""
        gaps = {n: v for n, v in values.items() if getattr(self.config, n) in (None, "auto")}
        return ResolvedSettings(
            replace(self.config, **gaps),  # type: ignore[arg-type]
            {**self.origins, **dict.fromkeys(gaps, why)},
        )

    def listed(self) -> tuple[TrainSetting, ...]:
        """Return every setting that counts here."""
        config = self.config
        idle = {"dpo_beta"} if config.method != "dpo" else set()
        idle |= {"eval_fraction"} if config.eval_data else set()
        idle |= {"rank", "alpha", "dropout"} if config.method == "full" else set()
        return tuple(
            TrainSetting(f.name, getattr(config, f.name), self.origins.get(f.name, "default"))
            for f in fields(config)
            if f.name not in idle
        )


def resolve_for_model(
    settings: ResolvedConfig[TrainConfig], outline: ModelMetadata
) -> ResolvedSettings:
    """Fill in what follows from the model and the machine.

    Raises:
        ConfigError: they cannot do what was chosen.
    """
    config, device = settings.values, outline.device
    cuda = device.type == "cuda"
    resolved = ResolvedSettings(config, settings.origins)
    context = outline.shape.context_length
    if config.max_length is not None and config.max_length > context:
        raise ConfigError(
            f"max_length is {config.max_length}, and the model was made for {context} tokens",
            hint=f"--max-length {context}",
        )
    length = min(context, _LONGEST)
    parameters = outline.shape.linear_parameters + outline.shape.other_parameters
    rate = _RATES.get(config.method, _ADAPTER_RATE / 2 if parameters >= _LARGE else _ADAPTER_RATE)
    resolved = (
        resolved.filled(
            "the model's context" if length == context else "default", max_length=length
        )
        .filled(f"for {config.method}", learning_rate=rate)
        .filled(f"for {config.method}", quant=config.weights_quant)
        .filled("twice the rank", alpha=config.lora_alpha)
        .filled(f"on {device.type}", gradient_checkpointing=cuda)
        .filled("on this machine", dtype=_TYPES[outline.dtype])
        .filled("on this machine", attention=_attention(config, cuda=cuda))
        .filled(f"on {device.type}", optimizer="paged_adamw_8bit" if cuda else "adamw")
    )
    if device.type == "cpu" and resolved.config.dtype == "float16":
        raise ConfigError("float16 does not train on a CPU", hint="--dtype bfloat16 or float32")
    if not cuda and resolved.config.optimizer == "paged_adamw_8bit":
        raise ConfigError(f"paged_adamw_8bit needs CUDA, not {device}", hint="--optimizer adamw")
    return resolved


def _attention(config: TrainConfig, *, cuda: bool) -> str:
    flash = cuda and importlib.util.find_spec("flash_attn") is not None
    if config.attention == "flash" and not flash:
        raise ConfigError(
            "flash attention is not installed, or there is no CUDA card",
            hint="pip install flash-attn, or leave out --attention",
        )
    if config.attention == "auto":
        return "flash" if flash else "sdpa"
    return config.attention


def resolve_for_data(
    resolved: ResolvedSettings, prepared: TokenizedDataset, world: int, device_type: str
) -> ResolvedSettings:
    """Fill in what follows from the rows: micro-batches, and when to measure and save.

    Raises:
        ConfigError: the devices cannot share the batch.
    """
    config = resolved.config
    if config.batch_size % world:
        raise ConfigError(
            f"{world} devices cannot share a batch of {config.batch_size} rows evenly",
            hint=f"--batch-size {-(-config.batch_size // world) * world}",
        )
    share = config.batch_size // world
    if config.micro_batch_size is not None and share % config.micro_batch_size:
        raise ConfigError(
            f"each of {world} devices has {share} rows of a batch, which do not go into "
            f"micro-batches of {config.micro_batch_size}",
            hint=f"--micro-batch-size {largest_divisor(share, config.micro_batch_size)}",
        )
    assert config.max_length is not None
    usual = np.percentile(prepared.train.lengths, 95) if not config.packing else config.max_length
    most = max(1, int(_BUSY_TOKENS.get(device_type, _BUSY_TOKENS_GPU) // usual))
    return resolved.filled("rows of this length", micro_batch_size=largest_divisor(share, most))


def resolve_schedule(
    resolved: ResolvedSettings, steps_per_epoch: int, *, measures: bool
) -> tuple[ResolvedSettings, int]:
    """Fill in how often to measure and save; return the number of steps too."""
    config = resolved.config
    steps = math.ceil(config.epochs * steps_per_epoch)
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
    often = max(1, min(steps_per_epoch, steps // _LEAST_MEASUREMENTS))
    resolved = resolved.filled("from the steps", eval_every=often if measures else None)
    every = resolved.config.eval_every or often
    return resolved.filled("as eval_every", save_every=every), steps
