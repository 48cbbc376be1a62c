"""How a model is expected to run, from its configuration alone."""

from typing import Any

from llmctl.engine.batching.forward.cache_layout import batched_cache_layers
from llmctl.types import ExecutionPath

FUSED_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Values of `model_type` whose layers have the structure that `FusedForward` implements."""


def expected_path(config: Any) -> tuple[ExecutionPath, str]:
    """Return the path that `choose_executor` will try first, and why.

    Only `choose_executor` compares logits, so a model may still run serially.

    Args:
        config: of Transformers.
    """
    from transformers.cache_utils import DynamicCache

    text = config.get_text_config(decoder=True)
    try:
        layers: list[Any] = DynamicCache(config=text).layers
    except AttributeError as error:
        return "serial", f"Transformers builds no cache from its configuration: {error}"
    known = batched_cache_layers()
    other = sorted({type(layer).__name__ for layer in layers if type(layer) not in known})
    if other or not layers:
        return "serial", f"a layer of its cache is a {other[0]}" if other else "it has no cache"
    if config.model_type in FUSED_MODEL_TYPES:
        return "fused", f"layers of {config.model_type}; compared with its own when loaded"
    return "batched", "its cache can be shared by rows; compared with its own logits when loaded"
