"""KV pool: cache contents, prefix reuse, budget and eviction."""

from collections.abc import Sequence
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import Tensor

from llmctl.engine.batching.kv_cache import KVCache, KVShape, common_prefix_length
from llmctl.engine.batching.kv_pool import KVPool

LAYERS, HEAD_DIM = 2, 2
SHAPE = KVShape.uniform(LAYERS, 1, HEAD_DIM, torch.float32, torch.device("cpu"))
ADAPTERS = (None, "a", "b")

# Runs of few distinct tokens, so that prefixes are shared across blocks of 64 and 128.
token_runs = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90)), min_size=1, max_size=4).map(
    lambda runs: [token for token, length in runs for _ in range(length)]
)


def contents(token_ids: Sequence[int], adapter: str | None, begin: int = 0) -> Tensor:
    """Return what a model writes: (tokens, layers, 2), from token, position, adapter and layer."""
    adapter_index = ADAPTERS.index(adapter)
    positions = torch.arange(begin, begin + len(token_ids))
    first = torch.tensor(token_ids) * 10_000 + positions
    layers = torch.arange(LAYERS) * 10 + adapter_index
    both = (first[:, None].expand(-1, LAYERS), layers[None].expand(len(token_ids), -1))
    return torch.stack(both, dim=-1).float()


def append(cache: KVCache, token_ids: Sequence[int]) -> None:
    begin, end = cache.length, cache.length + len(token_ids)
    new = contents(token_ids, cache.adapter, begin)
    for layer in range(LAYERS):
        cache.keys[layer][0, 0, begin:end] = new[:, layer]
        cache.values[layer][0, 0, begin:end] = -new[:, layer]
    cache.token_ids.extend(token_ids)


def assert_intact(cache: KVCache) -> None:
    expected = contents(cache.token_ids, cache.adapter)
    for layer in range(LAYERS):
        assert cache.keys[layer].shape == (1, 1, cache.capacity, HEAD_DIM)
        assert torch.equal(cache.keys[layer][0, 0, : cache.length], expected[:, layer])
        assert torch.equal(cache.values[layer][0, 0, : cache.length], -expected[:, layer])


class PoolMachine(RuleBasedStateMachine):
    @initialize(budget=st.integers(1, 1500))
    def begin(self, budget: int) -> None:
        self.pool = KVPool(SHAPE, budget)
        self.active: list[KVCache] = []

    def active_tokens(self) -> int:
        return sum(cache.capacity for cache in self.active)

    def idle_tokens(self) -> int:
        return self.pool.used_tokens - self.active_tokens()

    @rule(ids=token_runs, adapter=st.sampled_from(ADAPTERS), spare=st.integers(0, 200))
    def acquire(self, ids: list[int], adapter: str | None, spare: int) -> None:
        capacity, active = len(ids) + spare, self.active_tokens()
        shared, idle = self.pool.cached_prefix_length(ids, adapter), self.idle_tokens()
        own = (common_prefix_length(c.token_ids, ids) for c in self.active if c.adapter == adapter)
        assert shared >= max(own, default=0)
        cache = self.pool.acquire(ids, adapter, capacity)
        assert (cache is None) == (active + capacity > self.pool.budget_tokens)
        if cache is None:
            assert self.idle_tokens() == idle
            assert self.pool.cached_prefix_length(ids, adapter) == shared
            return
        self.active.append(cache)
        assert cache.adapter == adapter
        assert cache.capacity >= capacity
        assert cache.length == min(shared, len(ids) - 1)
        assert cache.token_ids == ids[: cache.length]
        append(cache, ids[cache.length :])

    @precondition(lambda self: self.active)
    @rule(data=st.data(), ids=token_runs)
    def grow(self, data: st.DataObject, ids: list[int]) -> None:
        cache = data.draw(st.sampled_from(self.active))
        tokens, before = cache.length + len(ids), cache.capacity
        others, idle = self.active_tokens() - before, self.idle_tokens()
        reserved = self.pool.reserve(cache, tokens)
        assert reserved == (tokens <= before or others + tokens <= self.pool.budget_tokens)
        if reserved:
            assert cache.capacity >= tokens
            append(cache, ids)
        else:
            assert (cache.capacity, self.idle_tokens()) == (before, idle)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), share=st.floats(0, 1))
    def shorten(self, data: st.DataObject, share: float) -> None:
        cache = data.draw(st.sampled_from(self.active))
        cache.truncate(int(cache.length * share))

    @precondition(lambda self: self.active)
    @rule(data=st.data(), discard=st.booleans())
    def release(self, data: st.DataObject, discard: bool) -> None:
        cache = data.draw(st.sampled_from(self.active))
        self.active.remove(cache)
        self.pool.release(cache, discard=discard)
        if not discard:
            assert self.pool.cached_prefix_length(cache.token_ids, cache.adapter) == cache.length

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        assert self.idle_tokens() == 0

    @rule(adapter=st.sampled_from(ADAPTERS[1:]), ids=token_runs)
    def drop_adapter(self, adapter: str, ids: list[int]) -> None:
        self.pool.drop_adapter(adapter)
        own = [common_prefix_length(c.token_ids, ids) for c in self.active if c.adapter == adapter]
        assert self.pool.cached_prefix_length(ids, adapter) == max(own, default=0)

    @invariant()
    def used_tokens_stay_within_the_budget(self) -> None:
        assert self.pool.active_count == len(self.active)
        assert self.idle_tokens() >= 0
        assert self.pool.used_tokens <= self.pool.budget_tokens

    @invariant()
    def every_cache_has_the_content_of_its_tokens_in_its_own_buffer(self) -> None:
        for cache in self.active:
            assert_intact(cache)
        buffers = [c.keys[0].untyped_storage().data_ptr() for c in self.active if c.capacity]
        assert len(set(buffers)) == len(buffers)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(token_runs, token_runs, st.integers(0, 200))
@settings(deadline=None)
def test_common_prefix_length_equals_a_token_by_token_search(
    a: list[int], b: list[int], shared: int
) -> None:
    for left, right in ((a, b), (a, a[:shared] + b), (a, a), (a, [])):
        naive = 0
        while naive < min(len(left), len(right)) and left[naive] == right[naive]:
            naive += 1
        assert common_prefix_length(left, right) == naive


def add_idle(pool: KVPool, ids: list[int], adapter: str | None = None) -> KVCache:
    """Compute a sequence and leave its cache idle."""
    cache = pool.acquire(ids, adapter, len(ids) + 1)
    assert cache is not None
    append(cache, ids[cache.length :])
    pool.release(cache)
    return cache


def test_a_long_cache_with_a_short_shared_prefix_is_evicted_when_its_space_is_needed() -> None:
    pool = KVPool(SHAPE, 512)
    add_idle(pool, [1] * 50 + [2] * 350)
    cache = pool.acquire([1] * 50 + [3] * 250, None, 301)
    assert cache is not None
    assert cache.length == 50


def test_reusing_a_long_cache_for_a_short_prompt_returns_the_spare_space() -> None:
    pool = KVPool(SHAPE, 4096)
    add_idle(pool, [1] * 10 + [2] * 3000)
    small = pool.acquire([1] * 10 + [3] * 90, None, 1200)
    assert small is not None
    assert pool.acquire([4] * 2000, None, 2001) is not None


def test_a_refused_acquire_evicts_no_idle_cache() -> None:
    pool = KVPool(SHAPE, 512)
    running = pool.acquire([1] * 300, None, 301)
    add_idle(pool, [2] * 100)
    assert running is not None
    assert pool.acquire([3] * 400, None, 401) is None
    assert pool.cached_prefix_length([2] * 100, None) == 100


def test_copying_a_prefix_counts_as_use_and_the_least_recently_used_cache_is_evicted_first() -> (
    None
):
    pool = KVPool(SHAPE, 1024)
    often = [1] * 100 + [2] * 150
    add_idle(pool, often)
    add_idle(pool, [3] * 200)
    add_idle(pool, [1] * 100 + [4] * 10)
    add_idle(pool, [5] * 400)
    assert pool.cached_prefix_length(often, None) == len(often)
    assert pool.cached_prefix_length([3] * 200, None) == 0


def test_near_the_budget_a_cache_grows_in_steps_not_token_by_token() -> None:
    pool = KVPool(SHAPE, 1400)
    cache = pool.acquire([1] * 1000, None, 1000)
    assert cache is not None
    append(cache, [1] * 1000)
    sizes = set()
    while pool.reserve(cache, cache.length + 1):
        append(cache, [1])
        sizes.add(cache.capacity)
    assert cache.length == 1400
    assert len(sizes) < 10


@pytest.mark.parametrize("adapter", ADAPTERS[1:])
def test_a_cache_is_not_reused_under_another_adapter(adapter: str) -> None:
    pool = KVPool(SHAPE, 1024)
    add_idle(pool, [1] * 100)
    cache = pool.acquire([1] * 100, adapter, 101)
    assert cache is not None
    assert cache.length == 0


def test_running_out_of_memory_within_the_budget_lowers_the_budget() -> None:
    # A quarter of an exabyte each token.
    huge = KVShape.uniform(LAYERS, 1, 2**44, torch.float32, torch.device("cpu"))
    pool = KVPool(huge, 1000)
    assert pool.acquire([1, 2, 3], None, 4) is None
    assert pool.active_count == 0
    assert pool.used_tokens == 0
    assert pool.budget_tokens == 250


def test_a_cache_that_cannot_grow_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = KVPool(SHAPE, 3000)
    idle = pool.acquire([7] * 400, None, 400)
    assert idle is not None
    append(idle, [7] * 400)
    pool.release(idle)
    cache = pool.acquire([1] * 300, None, 300)
    assert cache is not None
    append(cache, [1] * 300)
    before = cache.capacity
    zeros, most = torch.zeros, 2 * LAYERS * HEAD_DIM * 500

    def bounded(shape: tuple[int, ...], **options: Any) -> Tensor:
        if prod(shape) > most:
            raise MemoryError
        return zeros(shape, **options)

    monkeypatch.setattr(torch, "zeros", bounded)
    assert not pool.reserve(cache, 600)
    assert cache.capacity == before
    assert_intact(cache)
    assert pool.used_tokens == before  # the idle cache was evicted
    assert pool.budget_tokens == (before + 512) * 9 // 10
    assert pool.reserve(cache, 480)
    assert_intact(cache)
