"""What of an adapter that is taught further was settled when it was made?"""

from dataclasses import replace
from typing import Any

from llmctl.config import TrainConfig
from llmctl.config.settings import ResolvedConfig
from llmctl.engine.loading.adapters import read_adapter_config
from llmctl.errors import ConfigError

ORIGIN = "the adapter"


def settings_from_adapter(
    settings: ResolvedConfig[TrainConfig], adapter: str
) -> ResolvedConfig[TrainConfig]:
    """Put in what an adapter is made of: its method, rank, alpha, dropout and layers stay.

    Raises:
        ConfigError: something else was chosen, or it is no LoRA adapter.
    """
    config = settings.values
    if config.method == "full":
        raise ConfigError(
            f"method full teaches a model's own weights, and {adapter} is an adapter",
            hint=f"`llmctl models merge {adapter} -o FOLDER` makes it a model first",
        )
    made = _made_of(adapter, config)
    differing = [
        f"{settings.origins[name]}: {name} is {_shown(getattr(config, name))}, and the adapter "
        f"{adapter} was made with {_shown(value)}"
        for name, value in made.items()
        if name in settings.origins and _comparable(getattr(config, name)) != _comparable(value)
    ]
    if differing:
        raise ConfigError(
            "\n".join(differing),
            hint="leave it out to teach the adapter further; `llmctl models merge` it first, and "
            "what is taught is a new adapter",
        )
    origins = {**dict.fromkeys(made, ORIGIN), **settings.origins}
    return ResolvedConfig(replace(config, **made), origins)


def _made_of(adapter: str, config: TrainConfig) -> dict[str, Any]:
    """Return the settings that would make this adapter. PEFT's `LoraConfig` has them."""
    made = read_adapter_config(adapter)
    plain = "qlora" if config.method == "qlora" else "lora"  # the same adapter on other weights
    layers = made.target_modules or ()
    return {
        "method": "dora" if made.use_dora else "rslora" if made.use_rslora else plain,
        "rank": made.r,
        "alpha": float(made.lora_alpha),
        "dropout": float(made.lora_dropout),
        "target_modules": (layers,) if isinstance(layers, str) else tuple(sorted(layers)),
    }


def _comparable(value: object) -> object:
    return set(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
