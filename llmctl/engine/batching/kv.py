"""KV caches of token sequences within one budget of tokens, reused by prefix.

Each sequence has its own buffers, which grow with it, so sequences of any length share a step
without padding. The cache of a finished sequence stays until its space is needed (least recently
used first). A new prompt reuses the longest prefix that any cache holds.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.engine.error_translation import is_out_of_memory
from llmctl.types import KVQuant

_log = logging.getLogger(__name__)

_GROWTH_TOKENS = 128
"""Smallest step in which buffers grow."""
_COMPARED_TOKENS = 64
"""Tokens compared at once in the search for a common prefix."""

KVWriter = Callable[[int, Tensor, Tensor], None]
"""Writes keys and values (kv_heads, count, head_dim) of a layer."""
KVReader = Callable[[int], tuple[Tensor, Tensor]]
"""Returns keys and values (1, kv_heads, n, head_dim) of a layer."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of the cache of one token; the same in every layer."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    quant: KVQuant = "none"


class KVCache:
    """Keys and values of one token sequence under one adapter.

    The buffers `keys[layer]` and `values[layer]`, (1, kv_heads, capacity, head_dim), hold the
    tokens `token_ids`.
    """

    def __init__(self, shape: KVShape, adapter: str | None) -> None:
        self.adapter = adapter
        self.token_ids: list[int] = []
        self.capacity = 0
        self._shape = shape
        self.keys: tuple[Tensor, ...] = ()
        self.values: tuple[Tensor, ...] = ()
        self._allocate(0)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    def _allocate(self, capacity: int) -> None:
        s = self._shape
        # Zeros: attention also reads past the end, and the mask does not remove NaN.
        buffer = torch.zeros(
            (2, s.layers, 1, s.kv_heads, capacity, s.head_dim), dtype=s.dtype, device=s.device
        )
        self._buffers = [buffer]
        self.keys, self.values = buffer[0].unbind(0), buffer[1].unbind(0)
        self.capacity = capacity

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
        keys, values = self._buffers[0].narrow(4, first, count)
        return keys.unbind(0), values.unbind(0)

    def resize(self, capacity: int) -> None:
        """Change the capacity and keep the content. `capacity` is at least `length`."""
        before = self._buffers
        self._allocate(capacity)
        for new, old in zip(self._buffers, before, strict=True):
            new[..., : self.length, :] = old[..., : self.length, :]

    def copy_prefix(self, source: "KVCache", length: int) -> None:
        """Copy the first `length` tokens of another cache of the same adapter."""
        for new, old in zip(self._buffers, source._buffers, strict=True):
            new[..., :length, :] = old[..., :length, :]
        self.token_ids = source.token_ids[:length]

    def truncate(self, length: int) -> None:
        """Drop all tokens after the first `length`."""
        del self.token_ids[length:]


class Int8KVCache(KVCache):
    """A cache in 8 bits with one float32 scale per head and token: half the memory, but slower."""

    def _allocate(self, capacity: int) -> None:
        s = self._shape
        shape = (2, s.layers, 1, s.kv_heads, capacity)
        buffer = torch.zeros((*shape, s.head_dim), dtype=torch.int8, device=s.device)
        scales = torch.zeros((*shape, 1), dtype=torch.float32, device=s.device)
        # Assigned together: the second allocation may run out of memory.
        self._buffers = [buffer, scales]
        self.capacity = capacity

    def writer(self, past: int, count: int) -> KVWriter:
        """Return a writer that rounds to 255 steps of the largest value of each head and token."""
        buffer, scales = (b.narrow(4, past, count) for b in self._buffers)

        def write(layer: int, key: Tensor, value: Tensor) -> None:
            new = torch.stack((key, value)).unsqueeze(1).float()
            steps = new.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(127)
            scales[:, layer].copy_(steps)
            buffer[:, layer].copy_(new.div_(steps).round_())

        return write

    def reader(self, first: int, total: int) -> KVReader:
        """Return a reader that converts to the model's type; see `KVCache.reader`."""
        buffer, scales = (b.narrow(4, first, total - first) for b in self._buffers)

        def read(layer: int) -> tuple[Tensor, Tensor]:
            keys, values = (buffer[:, layer] * scales[:, layer]).to(self._shape.dtype).unbind(0)
            return keys, values

        return read


class KVPool:
    """All caches of an engine within one budget. Used by the engine thread alone.

    A cache is active while a sequence holds it, and idle after `release`.

    Args:
        shape: of each cache.
        budget_tokens: capacity of all caches together.
    """

    def __init__(self, shape: KVShape, budget_tokens: int) -> None:
        self.shape = shape
        self.budget_tokens = budget_tokens
        self._min_budget = budget_tokens // 4
        self.used_tokens = 0
        self._active: dict[int, KVCache] = {}
        self._idle: OrderedDict[int, KVCache] = OrderedDict()

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def _active_tokens(self) -> int:
        return sum(cache.capacity for cache in self._active.values())

    def cached_prefix_length(self, token_ids: Sequence[int], adapter: str | None) -> int:
        """Return the length of the longest prefix of `token_ids` in any cache."""
        return max(
            (
                common_prefix_length(c.token_ids, token_ids)
                for c in self._all()
                if c.adapter == adapter
            ),
            default=0,
        )

    def acquire(
        self, token_ids: Sequence[int], adapter: str | None, capacity: int
    ) -> KVCache | None:
        """Return an active cache that holds the longest cached prefix of `token_ids`.

        Args:
            token_ids: the sequence to compute. At least one token is left to compute, since there
                would be no logits without it.
            adapter: key of the adapter; caches of other adapters are not reused.
            capacity: tokens the cache must have space for at once.

        Returns:
            `None` if active caches, or the memory of the device, leave no such space. Idle caches
            may have been evicted then; nothing else has changed.
        """
        if self._active_tokens + capacity > self.budget_tokens:
            return None
        best, length = None, 0
        for other in self._all():
            if other.adapter == adapter:
                shared = common_prefix_length(other.token_ids, token_ids)
                if shared > length:
                    best, length = other, shared
        length = min(length, len(token_ids) - 1)
        if best is not None and id(best) in self._idle:
            # A cache that shares only its beginning is copied and kept, if there is space for both.
            both = self._active_tokens + best.capacity + capacity
            if length * 2 >= best.length or both > self.budget_tokens:
                return self._reuse(best, length, capacity)
            self._idle.move_to_end(id(best))
        cache = (Int8KVCache if self.shape.quant == "8bit" else KVCache)(self.shape, adapter)
        self._active[id(cache)] = cache
        if not self.reserve(cache, capacity, keep=best):
            self.release(cache)
            return None
        if best is not None:
            cache.copy_prefix(best, length)
        return cache

    def _reuse(self, cache: KVCache, length: int, capacity: int) -> KVCache | None:
        """Activate an idle cache and keep its first `length` tokens."""
        self._active[id(cache)] = self._idle.pop(id(cache))
        cache.truncate(length)
        if cache.capacity > 2 * _round_up(capacity):
            # Space that only the longer text needed returns to the budget.
            self._resize(cache, capacity)
        if not self.reserve(cache, capacity):
            self.release(cache)
            return None
        return cache

    def reserve(self, cache: KVCache, tokens: int, keep: KVCache | None = None) -> bool:
        """Give an active cache space for `tokens` tokens, evicting idle caches other than `keep`.

        Returns:
            Whether there was space. If not, the cache is unchanged.
        """
        if tokens <= cache.capacity:
            return True
        kept = 0 if keep is None or id(keep) not in self._idle else keep.capacity
        limit = self.budget_tokens - kept - self._active_tokens + cache.capacity
        if tokens > limit:
            return False
        # Grow by half where the budget allows it, so that copies stay rare.
        target = _round_up(max(tokens, min(cache.capacity * 3 // 2, tokens + 4096)))
        if target > limit:
            target = min(_round_up(tokens), limit)
        self._evict(target - cache.capacity, keep)
        if self._resize(cache, target):
            return True
        # Out of memory within the budget: another program uses it, or the plan was wrong.
        self.shrink_budget(keep)
        return self._resize(cache, tokens)

    def _resize(self, cache: KVCache, capacity: int) -> bool:
        """Change the capacity of a cache; return whether there was memory for it."""
        before = cache.capacity
        try:
            cache.resize(capacity)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        self.used_tokens += capacity - before
        return True

    def shrink_budget(self, keep: KVCache | None = None) -> None:
        """After running out of memory, drop idle caches other than `keep` and lower the budget.

        The budget becomes nine tenths of the tokens in use, but at least a quarter of the planned
        budget: another program that needs memory for a while must not disable the engine.
        """
        usable = self.used_tokens * 9 // 10
        self.clear(keep)
        self.budget_tokens = min(self.budget_tokens, max(usable, self._min_budget))
        _log.warning(
            "out of memory: the KV cache holds at most %d tokens from now on", self.budget_tokens
        )

    def release(self, cache: KVCache, *, discard: bool = False) -> None:
        """Make an active cache idle, for others to reuse, or discard it."""
        del self._active[id(cache)]
        if discard or not cache.length:
            self.used_tokens -= cache.capacity
            return
        self._idle[id(cache)] = cache

    def clear(self, keep: KVCache | None = None) -> None:
        """Drop every idle cache but `keep`."""
        for key in [key for key, cache in self._idle.items() if cache is not keep]:
            self.used_tokens -= self._idle.pop(key).capacity

    def drop_adapter(self, adapter: str) -> None:
        """Drop the idle caches of an adapter that was removed."""
        for key in [k for k, c in self._idle.items() if c.adapter == adapter]:
            self.used_tokens -= self._idle.pop(key).capacity

    def _evict(self, more: int, keep: KVCache | None) -> None:
        for key in list(self._idle):
            if self.used_tokens + more <= self.budget_tokens:
                return
            if self._idle[key] is not keep:
                self.used_tokens -= self._idle.pop(key).capacity

    def _all(self) -> list[KVCache]:
        return [*self._idle.values(), *self._active.values()]


def _round_up(tokens: int) -> int:
    """Round up to a multiple of the growth step."""
    return -(-tokens // _GROWTH_TOKENS) * _GROWTH_TOKENS


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
