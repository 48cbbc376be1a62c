"""Keys, values and recurrent states of one token sequence.

Each sequence has its own buffers, which grow with it, so sequences of any length share a step
without padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Self

import torch
from torch import Tensor

from llmctl.types import KVQuant

MAX_SAVED_STATES = 3
"""States per sequence that are saved for the reuse of a prefix."""
_COMPARED_TOKENS = 64
"""Tokens compared at once in the search for a common prefix."""

KVWriter = Callable[[int, Tensor, Tensor], None]
"""Writes keys and values (kv_heads, count, head_dim) of a layer."""
States = tuple[Tensor, ...]
"""The states of all recurrent layers of one sequence, each (1, ...)."""
KVReader = Callable[[int], tuple[Tensor, Tensor]]
"""Returns keys and values (1, kv_heads, n, head_dim) of a layer."""


class LayerShape(NamedTuple):
    """Shape of the keys and values of one token in one layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of the cache of one token."""

    layers: tuple[LayerShape | None, ...]
    """`None` for layers without keys and values of their own."""
    dtype: torch.dtype
    device: torch.device
    quant: KVQuant = "none"
    state_bytes: int = 0
    """Size of the states of all recurrent layers. They do not grow with the sequence."""
    whole_prompts: bool = False
    """Whether recurrent layers can continue from a state by one token only (Mamba 1)."""

    @classmethod
    def uniform(
        cls, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Return a shape with equal layers."""
        return cls((LayerShape(kv_heads, head_dim, head_dim),) * layers, dtype, device)

    @property
    def token_bytes(self) -> int:
        """Size of the keys and values of one token, in bytes."""
        size = 1 if self.quant == "8bit" else self.dtype.itemsize
        scales = 8 if self.quant == "8bit" else 0  # a float32 for the key, one for the value
        layers = (layer for layer in self.layers if layer is not None)
        return sum(n * ((key + value) * size + scales) for n, key, value in layers)

    @property
    def unit_bytes(self) -> int:
        """Size of one token of a budget; without keys and values a part of the state."""
        return self.token_bytes or max(self.state_bytes // 64, 1)

    @property
    def state_tokens(self) -> int:
        """Tokens of a budget that the states of one sequence take, saved ones included."""
        return -(-self.state_bytes * (1 + MAX_SAVED_STATES) // self.unit_bytes)

    def groups(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Return the parts of each (kv_heads, dim): layer, and 0 for keys or 1 for values."""
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for part in (0, 1):
            for index, layer in enumerate(self.layers):
                if layer is not None:
                    key = layer.kv_heads, layer[1 + part]
                    groups.setdefault(key, []).append((index, part))
        return groups


class KVCache:
    """Keys and values of one token sequence under one adapter.

    The buffers `keys[layer]` and `values[layer]`, (1, kv_heads, capacity, head_dim), hold the
    tokens `token_ids`. They are empty for layers without keys and values.
    """

    def __init__(self, shape: KVShape, adapter: str | None) -> None:
        self.adapter = adapter
        self.token_ids: list[int] = []
        self.capacity = 0
        self._shape = shape
        self._groups = shape.groups()
        # Where each layer's keys and values are in the concatenated parts of all groups.
        order = {part: i for i, part in enumerate(chain.from_iterable(self._groups.values()))}
        count = len(shape.layers)
        self._key_order = [order.get((layer, 0)) for layer in range(count)]
        self._value_order = [order.get((layer, 1)) for layer in range(count)]
        self._is_uniform = len(self._groups) == 1 and None not in shape.layers
        self._empty = torch.zeros((1, 0, 0, 0), dtype=shape.dtype, device=shape.device)
        self.keys: tuple[Tensor, ...] = ()
        self.values: tuple[Tensor, ...] = ()
        self._allocate(0)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def cost(self) -> int:
        """Tokens of the budget that the cache takes."""
        return self.capacity

    @property
    def can_truncate(self) -> bool:
        """Whether the cache can be cut to any length."""
        return True

    def has_layer(self, layer: int) -> bool:
        """Whether the layer has keys and values of its own."""
        return self._shape.layers[layer] is not None

    def _allocate(self, capacity: int) -> None:
        # Zeros: attention also reads past the end, and the mask does not remove NaN.
        self._buffers = [
            torch.zeros(
                (len(parts), 1, heads, capacity, dim),
                dtype=self._shape.dtype,
                device=self._shape.device,
            )
            for (heads, dim), parts in self._groups.items()
        ]
        self.capacity = capacity
        self.keys, self.values = self._layers(0, capacity)

    def writer(self, past: int, count: int) -> KVWriter:
        """Return a writer of the keys and values of `count` tokens after the first `past`."""
        keys, values = self._layers(past, count)

        def write(layer: int, key: Tensor, value: Tensor) -> None:
            keys[layer].copy_(key)
            values[layer].copy_(value)

        return write

    def reader(self, first: int, total: int) -> KVReader:
        """Return a reader of the keys and values of the tokens from `first` to `total`."""
        keys, values = self._layers(first, total - first)
        return lambda layer: (keys[layer], values[layer])

    def _layers(self, first: int, count: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        # All layers at once: making a view per layer takes longer than the copy itself.
        parts = [p for b in self._buffers for p in b.narrow(3, first, count).unbind(0)]
        return self._in_layers(parts)

    def _in_layers(self, parts: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Assign the parts of all groups to keys and values by layer."""
        if self._is_uniform:
            half = len(parts) // 2
            return tuple(parts[:half]), tuple(parts[half:])
        keys, values = (
            tuple(self._empty if at is None else parts[at] for at in order)
            for order in (self._key_order, self._value_order)
        )
        return keys, values

    def resize(self, capacity: int) -> None:
        """Change the capacity and keep the content. `capacity` is at least `length`."""
        before = self._buffers
        self._allocate(capacity)
        for new, old in zip(self._buffers, before, strict=True):
            new[..., : self.length, :] = old[..., : self.length, :]

    def reusable_length(self, token_ids: Sequence[int]) -> int:
        """Return how many of the first tokens of `token_ids` the cache can be cut back to."""
        return common_prefix_length(self.token_ids, token_ids)

    def copy_prefix(self, source: "KVCache", length: int) -> None:
        """Copy the first `length` tokens of another cache of the same adapter."""
        for new, old in zip(self._buffers, source._buffers, strict=True):
            new[..., :length, :] = old[..., :length, :]
        self.token_ids = source.token_ids[:length]

    def truncate(self, length: int) -> None:
        """Drop all tokens after the first `length`."""
        del self.token_ids[length:]

    def keep_state(self, length: int) -> None:
        """Make sure that the cache can be cut back to `length` tokens once it has that many."""

    def step_limit(self, budget: int, pending: int) -> int:
        """Return how many of `pending` tokens one step computes, at most `budget` if possible."""
        return min(budget, pending)

    def append(self, token_ids: Sequence[int]) -> None:
        """Add tokens whose keys and values were written."""
        self.token_ids.extend(token_ids)

    def detach(self) -> None:
        """Stop sharing memory with other sequences."""


class Int8KVCache(KVCache):
    """A cache in 8 bits with one float32 scale per head and token: half the memory, but slower."""

    def _allocate(self, capacity: int) -> None:
        s = self._shape
        shapes = [
            (len(parts), 1, heads, capacity, dim) for (heads, dim), parts in self._groups.items()
        ]
        buffers = [torch.zeros(shape, dtype=torch.int8, device=s.device) for shape in shapes]
        scales = [
            torch.zeros((*shape[:-1], 1), dtype=torch.float32, device=s.device) for shape in shapes
        ]
        # Assigned together: a later allocation may run out of memory.
        self._buffers = buffers + scales
        self.capacity = capacity

    def _quantized(
        self, first: int, count: int
    ) -> tuple[tuple[tuple[Tensor, ...], ...], tuple[tuple[Tensor, ...], ...]]:
        """Return keys and values, then the scales of both, by layer."""
        half = len(self._buffers) // 2
        views = [
            [p for b in buffers for p in b.narrow(3, first, count).unbind(0)]
            for buffers in (self._buffers[:half], self._buffers[half:])
        ]
        return self._in_layers(views[0]), self._in_layers(views[1])

    def writer(self, past: int, count: int) -> KVWriter:
        """Return a writer that rounds to 255 steps of the largest value of each head and token."""
        parts, scales = self._quantized(past, count)

        def write(layer: int, key: Tensor, value: Tensor) -> None:
            for part, scale, new in zip(parts, scales, (key, value), strict=True):
                wide = new.float()
                steps = wide.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(127)
                scale[layer].copy_(steps)
                part[layer].copy_(wide.div_(steps).round_())

        return write

    def reader(self, first: int, total: int) -> KVReader:
        """Return a reader that converts to the model's type; see `KVCache.reader`."""
        (keys, values), (key_scales, value_scales) = self._quantized(first, total - first)
        dtype = self._shape.dtype

        def read(layer: int) -> tuple[Tensor, Tensor]:
            return (
                (keys[layer] * key_scales[layer]).to(dtype),
                (values[layer] * value_scales[layer]).to(dtype),
            )

        return read


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    limit = min(len(a), len(b))
    at = 0
    # Slices compare in C; only the block that differs is compared token by token.
    while at < limit and a[at : at + _COMPARED_TOKENS] == b[at : at + _COMPARED_TOKENS]:
        at += _COMPARED_TOKENS
    while at < limit and a[at] == b[at]:
        at += 1
    return min(at, limit)
