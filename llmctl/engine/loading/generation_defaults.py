"""A model's defaults for generation, from its `generation_config.json`."""

import math
from pathlib import Path
from typing import Any

from llmctl.engine.models.resolved import ResolvedModel
from llmctl.types import SAMPLING_RANGES, SamplingParams

_FILE = "generation_config.json"
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
_INTEGERS = ("top_k", "max_new_tokens")


def read_generation_config(resolved: ResolvedModel, config: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the `GenerationConfig` of a model, and notes about what in its file is ignored.

    A file that Transformers does not accept never refuses the model: the defaults are then those of
    `config`.

    Args:
        config: the model's, of Transformers.
    """
    from transformers import GenerationConfig

    path = resolved.path / _FILE
    notes = []
    found: Any = None
    if path.is_file():
        try:
            found = GenerationConfig.from_pretrained(resolved.path)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            notes.append(f"{path} is ignored: {reason}")
    if found is None:
        found = GenerationConfig.from_model_config(config)
    ids = found.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    valid = [number for number in listed if type(number) is int]
    if len(valid) < len(listed) and ids is not None:
        notes.append(f"{path}: eos_token_id is {ids!r}, of which {valid} is used")
    found.eos_token_id = valid or None
    return found, tuple(notes)


def sampling_defaults(config: Any, folder: Path) -> tuple[SamplingParams, tuple[str, ...]]:
    """Return the defaults, and a note for each value that is out of range.

    As in vLLM the values count whether `do_sample` is set or not: it says how `generate()` behaves
    without arguments. A value out of range is replaced by the nearest one in range.

    Args:
        config: the `GenerationConfig` of a model.
        folder: of the model, for the notes.
    """
    values: dict[str, Any] = {}
    notes = []
    for name in _NAMES:
        value = getattr(config, name, None)
        if value is None:
            continue
        low, high = SAMPLING_RANGES[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = name in _INTEGERS
        if not is_number or not math.isfinite(value) or (whole and value != int(value)):
            notes.append(f"{folder / _FILE}: {name} is {value!r}, which is ignored")
            continue
        if whole:
            value = int(value)
        if name == "top_k" and value == -1:  # the whole vocabulary, as in vLLM
            value = 0
        values[name] = min(max(value, type(value)(low)), type(value)(high))
        if values[name] != value:
            notes.append(
                f"{folder / _FILE}: {name} is {value}, outside of {low:g} to {high:g}; "
                f"{values[name]} is used"
            )
    return SamplingParams(**values), tuple(notes)
