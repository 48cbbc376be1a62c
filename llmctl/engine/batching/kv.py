"""Keys and values of token sequences: kept while they may be of use, found again by prefix.

Every sequence has buffers of its own that grow with it, so rows of any length share a step without
padding. All of them together stay within one budget of tokens. What a finished row leaves behind
is kept, longest unused first to go, and a new prompt takes over the longest beginning it shares
with anything that is held.
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

_GROWTH = 128
"""Buffers grow in steps of at least so many tokens."""
_COMPARED = 64
"""Tokens compared at once when prefixes are measured."""


KVWriter = Callable[[int, Tensor, Tensor], None]
"""Writes keys and values of a layer, (kv_heads, count, head_dim) each."""
KVReader = Callable[[int], tuple[Tensor, Tensor]]
"""Returns keys and values of a layer, (1, kv_heads, n, head_dim) each."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token needs in every layer. All layers are alike."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    quant: KVQuant = "none"


class KVCache:
    """Keys and values of one token sequence under one adapter.

    `token_ids` are in the buffers, `keys[layer]` and `values[layer]`, which are
    (1, kv_heads, capacity, head_dim).
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
        # Zeros, not whatever was there: attention reads past the end, and masks what it reads.
        whole = torch.zeros(
            (2, s.layers, 1, s.kv_heads, capacity, s.head_dim), dtype=s.dtype, device=s.device
        )
        self._buffers = [whole]
        self.keys, self.values = whole[0].unbind(0), whole[1].unbind(0)
        self.capacity = capacity

    def writer(self, past: int, count: int) -> KVWriter:
        """Return what writes a layer's new keys and values after `past` tokens."""
        keys, values = self._layers(past, count)

        def write(layer: int, key: Tensor, value: Tensor) -> None:
            keys[layer].copy_(key)
            values[layer].copy_(value)

        return write

    def reader(self, first: int, total: int) -> KVReader:
        """Return what reads a layer's keys and values of tokens `first` to `total`."""
        keys, values = self._layers(first, total - first)
        return lambda layer: (keys[layer], values[layer])

    def _layers(self, first: int, count: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        # All layers at once: a view for each costs more Python than the copy it is for.
        keys, values = self._buffers[0].narrow(4, first, count)
        return keys.unbind(0), values.unbind(0)

    def resize(self, capacity: int) -> None:
        """Change the room, keeping what is held. `capacity` is at least `length`."""
        held = self._buffers
        self._allocate(capacity)
        for new, old in zip(self._buffers, held, strict=True):
            new[..., : self.length, :] = old[..., : self.length, :]

    def copy_prefix(self, source: "KVCache", length: int) -> None:
        """Begin with the first `length` tokens of another sequence of the same adapter."""
        for new, old in zip(self._buffers, source._buffers, strict=True):
            new[..., :length, :] = old[..., :length, :]
        self.token_ids = source.token_ids[:length]

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        del self.token_ids[length:]


class Int8KVCache(KVCache):
    """In 8 bits, with one float32 scale per head and token: half the memory, some of the speed."""

    def _allocate(self, capacity: int) -> None:
        s = self._shape
        shape = (2, s.layers, 1, s.kv_heads, capacity)
        whole = torch.zeros((*shape, s.head_dim), dtype=torch.int8, device=s.device)
        scales = torch.zeros((*shape, 1), dtype=torch.float32, device=s.device)
        # Only now: memory may end between the two.
        self._buffers = [whole, scales]
        self.capacity = capacity

    def writer(self, past: int, count: int) -> KVWriter:
        """Round to the nearest of 255 steps up to the largest of each head and token."""
        whole, scales = (buffer.narrow(4, past, count) for buffer in self._buffers)

        def write(layer: int, key: Tensor, value: Tensor) -> None:
            new = torch.stack((key, value)).unsqueeze(1).float()
            steps = new.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(127)
            scales[:, layer].copy_(steps)
            whole[:, layer].copy_(new.div_(steps).round_())

        return write

    def reader(self, first: int, total: int) -> KVReader:
        """Read back in the model's type; see `KVCache.reader`."""
        whole, scales = (buffer.narrow(4, first, total - first) for buffer in self._buffers)

        def read(layer: int) -> tuple[Tensor, Tensor]:
            keys, values = (whole[:, layer] * scales[:, layer]).to(self._shape.dtype).unbind(0)
            return keys, values

        return read


class KVPool:
    """All caches of an engine. Used by the engine thread alone."""

    def __init__(self, shape: KVShape, budget_tokens: int) -> None:
        self.shape = shape
        self.budget_tokens = budget_tokens
        self._least_budget = budget_tokens // 4
        self.used_tokens = 0
        self._active: dict[int, KVCache] = {}
        self._idle: OrderedDict[int, KVCache] = OrderedDict()

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def idle_tokens(self) -> int:
        """Room that idle caches would give back."""
        return sum(cache.capacity for cache in self._idle.values())

    @property
    def _active_tokens(self) -> int:
        return sum(cache.capacity for cache in self._active.values())

    def shared_prefix(self, token_ids: Sequence[int], adapter: str | None) -> int:
        """Length of the longest beginning of `token_ids` that is already computed."""
        return max(
            (common_prefix(c.token_ids, token_ids) for c in self._all() if c.adapter == adapter),
            default=0,
        )

    def open(self, token_ids: Sequence[int], adapter: str | None, room: int) -> KVCache | None:
        """Return a cache that begins with all of `token_ids` that is held anywhere, or `None`.

        Args:
            token_ids: the sequence that is about to be computed. At least one token is left to
                compute, for without it there are no logits.
            room: tokens the cache must have room for at once.

        Returns:
            `None` if active caches, or the memory itself, leave no such room; nothing has changed
            then but that idle caches may be gone.
        """
        if self._active_tokens + room > self.budget_tokens:
            return None
        best, length = None, 0
        for candidate in self._all():
            if candidate.adapter == adapter:
                shared = common_prefix(candidate.token_ids, token_ids)
                if shared > length:
                    best, length = candidate, shared
        length = min(length, len(token_ids) - 1)
        if best is not None and id(best) in self._idle:
            # A cache that mostly continues otherwise stays for those who continue it, if it can.
            both = self._active_tokens + best.capacity + room
            if length * 2 >= best.length or both > self.budget_tokens:
                return self._take_over(best, length, room)
            self._idle.move_to_end(id(best))
        cache = (Int8KVCache if self.shape.quant == "8bit" else KVCache)(self.shape, adapter)
        self._active[id(cache)] = cache
        if not self.reserve(cache, room, keep=best):
            self.release(cache)
            return None
        if best is not None:
            cache.copy_prefix(best, length)
        return cache

    def _take_over(self, cache: KVCache, length: int, room: int) -> KVCache | None:
        """Continue an idle cache after its first `length` tokens."""
        self._active[id(cache)] = self._idle.pop(id(cache))
        cache.truncate(length)
        if cache.capacity > 2 * _roomy(room):
            # Room that only the longer text needed goes back to all.
            self._resize(cache, room)
        if not self.reserve(cache, room):
            self.release(cache)
            return None
        return cache

    def reserve(self, cache: KVCache, tokens: int, keep: KVCache | None = None) -> bool:
        """Give an active cache room for `tokens` in all; idle caches make way, but for `keep`.

        Returns:
            Whether there was room. If not, the cache is as it was.
        """
        if tokens <= cache.capacity:
            return True
        kept = 0 if keep is None or id(keep) not in self._idle else keep.capacity
        most = self.budget_tokens - kept - self._active_tokens + cache.capacity
        if tokens > most:
            return False
        # Half as much again, where there is room for it, or copying would eat what growing saves.
        wanted = _roomy(max(tokens, min(cache.capacity * 3 // 2, tokens + 4096)))
        if wanted > most:
            wanted = min(_roomy(tokens), most)
        self._evict(wanted - cache.capacity, keep)
        if self._resize(cache, wanted):
            return True
        # Memory ends before the budget does: another program took it, or the plan was wrong.
        self.tighten(keep)
        return self._resize(cache, tokens)

    def _resize(self, cache: KVCache, capacity: int) -> bool:
        """Change a cache's room; return whether there was memory for it."""
        before = cache.capacity
        try:
            cache.resize(capacity)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        self.used_tokens += capacity - before
        return True

    def tighten(self, keep: KVCache | None = None) -> None:
        """Memory ran out: give up idle caches but `keep`, and hold less from now on.

        The budget becomes nine tenths of what was held, but at least a quarter of what was planned:
        memory that another program took for a while must not close the engine for good.
        """
        held = self.used_tokens * 9 // 10
        self.clear(keep)
        self.budget_tokens = min(self.budget_tokens, max(held, self._least_budget))
        _log.warning(
            "memory ran out: from now on at most %d tokens are held in the KV cache",
            self.budget_tokens,
        )

    def release(self, cache: KVCache, *, forget: bool = False) -> None:
        """Take a cache back from its row: kept for others, or given up at once."""
        del self._active[id(cache)]
        if forget or not cache.length:
            self.used_tokens -= cache.capacity
            return
        self._idle[id(cache)] = cache

    def clear(self, keep: KVCache | None = None) -> None:
        """Give up every idle cache but `keep`."""
        for key in [key for key, cache in self._idle.items() if cache is not keep]:
            self.used_tokens -= self._idle.pop(key).capacity

    def drop_adapter(self, adapter: str) -> None:
        """Give up what was computed under an adapter that is no more."""
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


def _roomy(tokens: int) -> int:
    """Round up to whole steps of growth."""
    return -(-tokens // _GROWTH) * _GROWTH


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    most = min(len(a), len(b))
    at = 0
    # Slices compare in C; only the block that differs is looked at token by token.
    while at < most and a[at : at + _COMPARED] == b[at : at + _COMPARED]:
        at += _COMPARED
    while at < most and a[at] == b[at]:
        at += 1
    return min(at, most)
