"""KV caches of token sequences within one budget of tokens, reused by prefix.

The cache of a finished sequence stays until its space is needed (least recently used first). A new
prompt reuses the longest prefix that any cache holds.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence

from llmctl.engine.batching.kv_cache import Int8KVCache, KVCache, KVShape, common_prefix_length
from llmctl.engine.batching.recurrent_cache import RecurrentCache
from llmctl.engine.error_translation import is_out_of_memory

_log = logging.getLogger(__name__)

_GROWTH_TOKENS = 128
"""Smallest step in which buffers grow."""


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
        return sum(cache.cost for cache in self._active.values())

    def cached_prefix_length(self, token_ids: Sequence[int], adapter: str | None) -> int:
        """Return the length of the longest prefix of `token_ids` that a cache can be cut to."""
        return max(
            (c.reusable_length(token_ids) for c in self._all() if c.adapter == adapter), default=0
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
        if self._active_tokens + capacity + self.shape.state_tokens > self.budget_tokens:
            return None
        # At least one token is left to compute.
        best, length = self._longest_prefix(token_ids[:-1], adapter)
        cache = self._with_prefix(best, length, adapter, capacity)
        if cache is not None and not cache.can_truncate:
            # The end of the prompt, and where it differs from another one: the next may do so too.
            cache.keep_state(len(token_ids) - 1)
            cache.keep_state(self._common_length(token_ids[:-1], adapter, cache))
        return cache

    def _longest_prefix(
        self, token_ids: Sequence[int], adapter: str | None
    ) -> tuple[KVCache | None, int]:
        best, length = None, 0
        for other in self._all():
            if other.adapter == adapter:
                reusable = other.reusable_length(token_ids)
                if reusable > length:
                    best, length = other, reusable
        return best, length

    def _common_length(self, token_ids: Sequence[int], adapter: str | None, own: KVCache) -> int:
        """Return the length of the longest common prefix with any cache but `own`."""
        return max(
            (
                common_prefix_length(other.token_ids, token_ids)
                for other in self._all()
                if other.adapter == adapter and other is not own
            ),
            default=0,
        )

    def _with_prefix(
        self, best: KVCache | None, length: int, adapter: str | None, capacity: int
    ) -> KVCache | None:
        """Return an active cache with the first `length` tokens of `best`."""
        if best is not None and id(best) in self._idle:
            # A cache that shares only its beginning is copied and kept, if there is space for both.
            both = self._active_tokens + best.cost + capacity + self.shape.state_tokens
            if length * 2 >= best.length or both > self.budget_tokens:
                return self._reuse(best, length, capacity)
            self._idle.move_to_end(id(best))
        cache = self._new_cache(adapter)
        self._active[id(cache)] = cache
        self.used_tokens += cache.cost
        if not self.reserve(cache, capacity, keep=best):
            self.release(cache)
            return None
        if best is not None:
            cache.copy_prefix(best, length)
        return cache

    def _new_cache(self, adapter: str | None) -> KVCache:
        if self.shape.state_bytes:
            return RecurrentCache(self.shape, adapter)
        return (Int8KVCache if self.shape.quant == "8bit" else KVCache)(self.shape, adapter)

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
        kept = 0 if keep is None or id(keep) not in self._idle else keep.cost
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
            self.used_tokens -= cache.cost
            return
        cache.detach()
        self._idle[id(cache)] = cache

    def clear(self, keep: KVCache | None = None) -> None:
        """Drop every idle cache but `keep`."""
        for key in [key for key, cache in self._idle.items() if cache is not keep]:
            self.used_tokens -= self._idle.pop(key).cost

    def drop_adapter(self, adapter: str) -> None:
        """Drop the idle caches of an adapter that was removed."""
        for key in [k for k, c in self._idle.items() if c.adapter == adapter]:
            self.used_tokens -= self._idle.pop(key).cost

    def _evict(self, more: int, keep: KVCache | None) -> None:
        for key in list(self._idle):
            if self.used_tokens + more <= self.budget_tokens:
                return
            if self._idle[key] is not keep:
                self.used_tokens -= self._idle.pop(key).cost

    def _all(self) -> list[KVCache]:
        return [*self._idle.values(), *self._active.values()]


def _round_up(tokens: int) -> int:
    """Round up to a multiple of the growth step."""
    return -(-tokens // _GROWTH_TOKENS) * _GROWTH_TOKENS
