"""Configs of LoRA adapters in PEFT's format: their check, and what they need of the engine."""

import json
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llmctl.engine.models.adapter_metadata import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llmctl.engine.models.weight_files import read_entries
from llmctl.errors import ConfigError

_log = logging.getLogger(__name__)

BASE_PRESERVING_INITS = (True, False, "gaussian", "eva", "mica", "orthogonal")
"""Values of `init_lora_weights` that do not change the base model's weights."""
_LOST_BASE_WEIGHTS = {
    "pissa_niter": "PEFT computes its base weights anew at every load, from random numbers",
    "corda": "its base weights were computed from data, which the adapter does not have",
    "lora_ga": "its base weights were computed from gradients, which the adapter does not have",
}
"""Beginnings of `init_lora_weights` whose base weights cannot be computed again."""
_REFUSED_OPTIONS = {
    "alora_invocation_tokens": (
        "it is an activated LoRA, which applies from certain tokens of the prompt on",
        "it can be neither merged nor added permanently: use it with PEFT",
    ),
    "arrow_config": (
        "it chooses between other adapters (Arrow), which it does not have",
        "use one of these adapters, or PEFT's create_arrow_model()",
    ),
    "megatron_config": (
        "it is for a model of Megatron",
        "convert it to an adapter of the Transformers model",
    ),
}
_OF_THE_TRAINING = ("velora_config", "monteclora_config")
"""Variants that change training only: the adapter is `lora_A` and `lora_B`."""


def read_adapter_config(path: str) -> Any:
    """Read PEFT's config of a LoRA adapter.

    Raises:
        ConfigError: the folder has no adapter, or one that PEFT or this engine cannot add to a
            model; the message names the file and the option.
    """
    from peft import PeftConfig

    folder = Path(path).expanduser()
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise ConfigError(f"{path} is not the folder of an adapter: it has no {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"{path} has no {ADAPTER_WEIGHTS}",
            hint="load it with PEFT and save it with save_pretrained()",
        )
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        written = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}/{ADAPTER_CONFIG} cannot be read: {error}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(
            f"{path} is a {kind} adapter; only LoRA adapters are supported", hint=_merge_hint(path)
        )
    _check_known(path, config, written)
    _check_patterns(path, config)
    init = str(config.init_lora_weights)
    for beginning, reason in _LOST_BASE_WEIGHTS.items():
        if init.startswith(beginning):
            raise ConfigError(
                f"{path} was initialised with {init!r}: {reason}",
                hint="save it as plain LoRA with PEFT's "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
            )
    if init == "loftq" and not torch.cuda.is_available():
        raise ConfigError(
            f"{path} was initialised with 'loftq': PEFT computes its base weights on CUDA only",
            hint="use a machine with CUDA, or merge it there: "
            f"llmctl models merge {path} -o FOLDER",
        )
    for name, (reason, way_out) in _REFUSED_OPTIONS.items():
        if getattr(config, name, None):
            raise ConfigError(f"{path} is not supported: {reason} ({name})", hint=way_out)
    return config


def _merge_hint(path: str) -> str:
    """Return the lines of PEFT that make a model of an adapter, if its kind can be merged."""
    return (
        "where its kind can be merged, PEFT makes a model of it: "
        f"AutoPeftModelForCausalLM.from_pretrained({path!r}).merge_and_unload()"
        ".save_pretrained('FOLDER')"
    )


def _check_known(path: str, config: Any, written: dict[str, Any]) -> None:
    """Refuse variants of LoRA that the installed PEFT does not have; log other unknown options."""
    known = {field.name for field in fields(config)}
    for name in sorted(name for name, value in written.items() if value and name not in known):
        if name.startswith("use_") or name.endswith("_config"):
            raise ConfigError(
                f"{path}/{ADAPTER_CONFIG} has the option {name}, which PEFT {version('peft')} does "
                "not have",
                hint=f"it was saved by PEFT {written.get('peft_version') or 'of another version'}: "
                "install that, or merge the adapter with it",
            )
        _log.warning("%s/%s: PEFT ignores the option %.80s", path, ADAPTER_CONFIG, name)


def _check_patterns(path: str, config: Any) -> None:
    """Check the options that PEFT compiles as regular expressions."""
    for name, pattern in _patterns(path, config):
        try:
            # PEFT puts them into groups, in which some have another meaning or none.
            re.compile(rf"(?:^|.*?\.)({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"{path}/{ADAPTER_CONFIG}: {name}: {pattern!r} is not a valid regular expression: "
                f"{error}",
                hint="correct it there, as it was in training",
            ) from error


def _patterns(path: str, config: Any) -> Iterator[tuple[str, str]]:
    """Yield the name of an option and each of its regular expressions."""
    for name in ("rank_pattern", "alpha_pattern"):
        value = getattr(config, name) or {}
        if not isinstance(value, dict):
            raise ConfigError(f"{path}/{ADAPTER_CONFIG}: {name} is not an object: {value!r:.80}")
        yield from ((name, key) for key in value)
    for name in ("target_modules", "exclude_modules"):
        if isinstance(value := getattr(config, name), str):  # a list has names
            yield name, value
    for name in ("layers_pattern", "modules_to_save"):
        value = getattr(config, name) or []
        yield from ((name, key) for key in ([value] if isinstance(value, str) else value))


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
        patterns = list(getattr(config, name) or {})
        for first in patterns:
            for second in patterns:
                if first != second and re.search(rf"(?:^|\.)(?:{first})$", second):
                    _log.warning(
                        "%s: the keys %r and %r of %s match the same layers, and PEFT has sorted "
                        "them; if they were in another order in training, the adapter differs",
                        *(path, first, second, name),
                    )


SINGLE_EXPERT = re.compile(r"\.experts\.\d+\.")
"""In names of Transformers 4, where each expert had layers of its own; PEFT converts them."""


def variants(config: Any) -> list[str]:
    """Return the options of a config that make a variant of LoRA, beside DoRA."""
    names = (field.name for field in fields(config) if field.metadata.get("is_lora_variant"))
    return [name for name in names if name != "use_dora" and getattr(config, name)]


def _unsupported_part(config: Any, names: Collection[str]) -> str | None:
    other = next((n for n in names if ".lora_A." not in n and ".lora_B." not in n), None)
    experts = any(map(SINGLE_EXPERT.search, names))
    variant = next((name for name in variants(config) if name not in _OF_THE_TRAINING), None)
    reasons = {
        "it uses DoRA": config.use_dora,
        f"it is a variant of LoRA ({variant})": variant,
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
