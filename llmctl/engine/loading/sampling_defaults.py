"""Sampling defaults of a model, from its `generation_config.json`."""

import math
from typing import Any

from llmctl.types import SAMPLING_RANGES, SamplingParams

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")


def sampling_defaults(config: Any) -> tuple[SamplingParams, tuple[str, ...]]:
    """Return the defaults, and a note for each value that is out of range.

    As in vLLM the values count whether `do_sample` is set or not: it says how `generate()` behaves
    without arguments. A value out of range is replaced by the nearest one in range.

    Args:
        config: the `GenerationConfig` of a model.
    """
    values: dict[str, Any] = {}
    notes = []
    for name in _NAMES:
        value = getattr(config, name, None)
        if value is None:
            continue
        low, high = SAMPLING_RANGES[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            notes.append(f"generation_config.json: {name} is {value!r}, which is ignored")
            continue
        if name in ("top_k", "max_new_tokens"):
            value = int(value)
        if name == "top_k" and value == -1:  # the whole vocabulary, as in vLLM
            value = 0
        values[name] = min(max(value, type(value)(low)), type(value)(high))
        if values[name] != value:
            notes.append(
                f"generation_config.json: {name} is {value}, outside of {low:g} to {high:g}; "
                f"{values[name]} is used"
            )
    return SamplingParams(**values), tuple(notes)
