"""Sizes of what each layer of a model keeps between steps, before weights are read."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmctl.engine.batching.forward.cache_layout import get_states
from llmctl.types import KVQuant

_log = logging.getLogger(__name__)

_KV_SCALE_BYTES = 4
"""An 8-bit head of keys or values has one float32 scale per token."""


@dataclass(frozen=True, slots=True)
class LayerKV:
    """The keys and values of one attention layer per token."""

    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    """Most tokens that the cache of `generate()` keeps; `None`: all."""

    def token_bytes(self, itemsize: int, quant: KVQuant) -> int:
        """Return the bytes of one token's keys and values; `itemsize` is that of the dtype."""
        numbers = self.heads * (self.key_dim + self.value_dim)
        if quant == "8bit":
            return numbers + 2 * self.heads * _KV_SCALE_BYTES
        return numbers * itemsize


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """What one row keeps between steps."""

    attention: tuple[LayerKV, ...] = ()
    """The layers with keys and values of their own, in order."""
    state_numbers: int = 0
    """Numbers in the states of recurrent layers, in the type of the model."""
    wide_state_numbers: int = 0
    """Numbers in such states that are float32 for any type of the model."""
    stateful_layers: int = 0
    """Number of layers with such states, instead of keys and values or in addition."""

    def state_bytes(self, itemsize: int) -> int:
        """Return the bytes of the states; `itemsize` is that of the model's type."""
        return self.state_numbers * itemsize + self.wide_state_numbers * 4


def cache_sizes(model: Any, kinds: list[Any]) -> CacheSizes:
    """Return the sizes that the model's code gives to the layers of its cache.

    Args:
        model: of Transformers in bfloat16, on the meta device, where it computes shapes only.
        kinds: the layers of the cache that Transformers creates for it.
    """
    stateful = sum(hasattr(kind, "recurrent_states") for kind in kinds)
    try:
        cache = _cache_of_two_tokens(model)
        pairs = list(zip(cache.layers, kinds, strict=True))
        states = get_states(cache)
    except Exception as error:  # code that reads values, such as gpt2's
        _log.debug("cache of %s estimated from its config", type(model).__name__, exc_info=error)
        try:
            return CacheSizes(_from_config(model.config, kinds), stateful_layers=stateful)
        except AttributeError as missing:  # a state of a class of its own, such as RWKV's
            _log.info("the cache of %s is not planned: %s", type(model).__name__, missing)
            return CacheSizes(stateful_layers=len(kinds))
    attention = tuple(
        LayerKV(keys.shape[1], keys.shape[-1], layer.values.shape[-1], _window(kind))
        for layer, kind in pairs
        if isinstance(keys := getattr(layer, "keys", None), Tensor)
    )
    return CacheSizes(
        attention,
        sum(state.numel() for state in states if state.dtype == torch.bfloat16),
        sum(state.numel() for state in states if state.dtype != torch.bfloat16),
        stateful,
    )


@torch.inference_mode()
def _cache_of_two_tokens(model: Any) -> Any:
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # its shapes depend on no values
    with torch.device("meta"):
        ids = torch.zeros((1, 2), dtype=torch.long)
        output = model.get_decoder()(input_ids=ids, use_cache=True)
    names = ("cache", "past_key_values", "cache_params")
    return next(output[name] for name in names if output.get(name) is not None)


def _from_config(config: Any, kinds: list[Any]) -> tuple[LayerKV, ...]:
    from transformers.cache_utils import DynamicLayer

    text = config.get_text_config(decoder=True)
    return tuple(
        _layer_from_config(text, index, _window(kind))
        for index, kind in enumerate(kinds)
        if isinstance(kind, DynamicLayer)
    )


def _window(kind: Any) -> int | None:
    window = getattr(kind, "sliding_window", None)
    # The current token does not need the cache to attend to itself.
    return None if window is None else window - 1


def _layer_from_config(text: Any, index: int, window: int | None) -> LayerKV:
    own = text.per_layer_config[index] if getattr(text, "is_heterogeneous", False) else text
    if latent := getattr(own, "kv_lora_rank", None):
        # Multi-head latent attention (DeepSeek-V2, section 2.1): one compressed vector for all
        # heads, and the rotary part of the keys.
        return LayerKV(1, latent, own.qk_rope_head_dim, window)
    dim = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    return LayerKV(heads, dim, dim, window)
