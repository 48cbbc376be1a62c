"""What each layer of a model keeps between steps, found by running the model on two tokens."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.engine.batching.forward.attention import layer_index
from llmctl.engine.batching.forward.step import step_of_thread
from llmctl.engine.batching.kv_cache import KVShape, LayerShape, States

_PROBE = "llmctl_probe"


class UnsupportedCacheError(Exception):
    """A model keeps something between steps that cannot be batched."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What the layers of a model keep between steps."""

    shape: KVShape
    latent: frozenset[int]
    """Layers that cache other tensors than the keys and values of their attention."""
    is_plain: bool
    """Whether every layer has keys and values of its own and nothing else."""
    cache_argument: str
    """Name of the argument of the model's forward pass for the cache."""

    @property
    def candidates(self) -> "tuple[CacheLayout, ...]":
        """The ways of computing prompts to try, the faster first."""
        if not self.is_recurrent:
            return (self,)
        return self, replace(self, shape=replace(self.shape, whole_prompts=True))

    @property
    def is_recurrent(self) -> bool:
        return self.shape.state_bytes > 0

    def step_cache(self, model: Any) -> Any:
        """Return a cache of Transformers whose keys and values are kept by the current step.

        Recurrent layers keep their states in it.
        """
        from transformers.cache_utils import CacheLayerMixin, DynamicCache

        cache: Any = DynamicCache(config=model.config)
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, CacheLayerMixin):
                vars(layer)["update"] = _update(index, is_latent=index in self.latent)
        return cache

    def cache_arguments(self, cache: Any) -> dict[str, Any]:
        """Return the arguments of the forward pass for a cache, or for none."""
        if cache is None:
            return {"use_cache": False}
        return {"use_cache": True, self.cache_argument: cache}


def _update(layer: int, *, is_latent: bool) -> Any:
    """Return the `update` of a layer of the cache: the caches of the sequences keep the tensors."""

    def update(first: Tensor, second: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        step = step_of_thread()
        step.layer = layer
        return step.update_latent(layer, first, second) if is_latent else (first, second)

    return update


def get_states(cache: Any) -> States:
    """Return the states (rows, ...) of all recurrent layers of a cache of Transformers."""
    return tuple(
        states[index]
        for layer in _recurrent_layers(cache)
        for states in (layer.conv_states, layer.recurrent_states)
        for index in sorted(states)
        if states[index] is not None
    )


def set_states(cache: Any, kinds: list[tuple[int, str, int]], states: States) -> None:
    """Put states (rows, ...) into a cache of Transformers.

    Args:
        cache: to change.
        kinds: layer, name and index of each state, as `state_kinds` returns them.
        states: in that order.
    """
    for (number, name, index), state in zip(kinds, states, strict=True):
        layer = cache.layers[number]
        getattr(layer, f"{name}_states")[index] = state
        getattr(layer, f"is_{name}_states_initialized")[index] = True
        layer.has_previous_state[index] = True
        layer.dtype, layer.device = state.dtype, state.device
        if name == "conv":
            layer.conv_kernel_size[index] = state.shape[-1]


def state_kinds(cache: Any) -> list[tuple[int, str, int]]:
    """Return layer, name (`conv` or `recurrent`) and index of each state, as `get_states` does."""
    return [
        (number, name, index)
        for number, layer in enumerate(cache.layers)
        if hasattr(layer, "recurrent_states")
        for name in ("conv", "recurrent")
        for index in sorted(getattr(layer, f"{name}_states"))
        if getattr(layer, f"{name}_states")[index] is not None
    ]


def _recurrent_layers(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if hasattr(layer, "recurrent_states")]


@torch.inference_mode()
def cache_layout(model: Any) -> CacheLayout:
    """Return what the layers of a model keep.

    Raises:
        UnsupportedCacheError: a layer keeps something else than keys and values, latent tensors or
            states, or computes attention outside of Transformers' interface.
    """
    parameters = inspect.signature(model.forward).parameters
    # Transformers 5.24 renamed it.
    names = [name for name in ("cache", "past_key_values", "cache_params") if name in parameters]
    if not names:
        raise UnsupportedCacheError("its forward pass takes no cache")
    probe = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    output = model(input_ids=probe, use_cache=True)
    cache = next((output[name] for name in names if output.get(name) is not None), None)
    layers = _cache_layers(cache)
    seen = _attention_shapes(model, probe, names[0])
    shapes: list[LayerShape | None] = []
    latent = set()
    for index, layer in enumerate(layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            shapes.append(None)
            continue
        if index not in seen:
            raise UnsupportedCacheError("its attention is not computed by Transformers' interface")
        shape = LayerShape(keys.shape[1], keys.shape[3], values.shape[3])
        shapes.append(shape)
        if seen[index] != shape:
            latent.add(index)
    tensors = [layer.keys for layer in layers if getattr(layer, "keys", None) is not None]
    states = get_states(cache)
    first = (*tensors, *states)[0]
    return CacheLayout(
        KVShape(
            tuple(shapes),
            first.dtype,
            first.device,
            state_bytes=sum(state.numel() * state.element_size() for state in states),
        ),
        frozenset(latent),
        is_plain=not latent and None not in shapes and not states,
        cache_argument=names[0],
    )


def batched_cache_layers() -> frozenset[type]:
    """Return the classes of Transformers' cache layers whose content can be batched."""
    from transformers import cache_utils

    names = (
        *("Dummy", "Dynamic", "DynamicSlidingWindow", "LinearAttention"),
        *("LinearAttentionAndFullAttention", "LinearAttentionAndSlidingWindowAttention"),
    )
    classes = (getattr(cache_utils, f"{name}Layer", None) for name in names)
    return frozenset(cls for cls in classes if cls is not None)


def _cache_layers(cache: Any) -> list[Any]:
    from transformers.cache_utils import DynamicCache

    known = batched_cache_layers()
    if type(cache) is not DynamicCache or not cache.layers:
        raise UnsupportedCacheError(f"its cache is a {type(cache).__name__}")
    for layer in cache.layers:
        if type(layer) not in known:
            raise UnsupportedCacheError(f"a layer of its cache is a {type(layer).__name__}")
    return list(cache.layers)


def _attention_shapes(model: Any, probe: Tensor, argument: str) -> dict[int, LayerShape]:
    """Return the shapes of the keys and values that the attention of each layer gets."""
    from transformers import AttentionInterface
    from transformers.cache_utils import CacheLayerMixin, DynamicCache

    seen: dict[int, LayerShape] = {}
    updated = [-1]

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        seen[layer_index(module, updated[0])] = LayerShape(
            key.shape[1], key.shape[3], value.shape[3]
        )
        rows, heads, tokens, _dim = query.shape
        return query.new_zeros(rows, tokens, heads, value.shape[3]), None

    cache: Any = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, CacheLayerMixin):

            def update(*states: Any, _index: int = index, **_: Any) -> tuple[Tensor, Tensor]:
                updated[0] = _index
                return states[0], states[1]

            vars(layer)["update"] = update
    stock = model.config._attn_implementation
    AttentionInterface.register(_PROBE, record)
    try:
        model.set_attn_implementation(_PROBE)
        model(input_ids=probe, use_cache=True, **{argument: cache})
    finally:
        model.set_attn_implementation(stock)
    return seen
