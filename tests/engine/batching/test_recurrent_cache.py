"""Caches of recurrent layers: the state always belongs to the tokens of the cache."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.engine.batching.kv_cache import KVShape, States
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.recurrent_cache import RecurrentCache

SHAPE = replace(KVShape.uniform(1, 1, 2, torch.float32, torch.device("cpu")), state_bytes=64)


def state_after(token_ids: Sequence[int]) -> States:
    """Return a state that depends on all tokens and their order."""
    value = 0
    for token_id in token_ids:
        value = (value * 31 + token_id + 1) % 1_000_003
    return (torch.tensor([[float(value)]]),)


def run(pool: KVPool, prompt: list[int], reply: list[int]) -> int:
    """Run a prompt and a reply; return the reused tokens."""
    cache = pool.acquire(prompt, None, len(prompt) + len(reply) + 1)
    assert isinstance(cache, RecurrentCache)
    reused = cache.length
    if reused:
        assert cache.state is not None
        assert torch.equal(cache.state[0], state_after(prompt[:reused])[0])
    step(cache, prompt)
    for end in range(1, len(reply) + 1):
        step(cache, prompt + reply[:end])
    pool.release(cache)
    return reused


def step(cache: RecurrentCache, token_ids: Sequence[int], budget: int = 40) -> None:
    """Compute up to the end of `token_ids` as a forward pass does."""
    while cache.length < len(token_ids):
        count = cache.step_limit(budget, len(token_ids) - cache.length)
        assert 0 < count <= len(token_ids) - cache.length
        new = token_ids[cache.length : cache.length + count]
        cache.invalidate()
        cache.state = state_after([*cache.token_ids, *new])
        cache.append(new)


def test_a_conversation_continues_from_the_end_of_its_last_turn() -> None:
    pool = KVPool(SHAPE, 10_000)
    first, reply = [*range(100)], [7] * 20
    assert run(pool, first, reply) == 0
    assert run(pool, [*first, *reply, 1, 2, 3], reply) == 120
    # The reply is left out of the next prompt, as templates do with reasoning.
    assert run(pool, [*first, 9, 9], []) == 99


def test_the_third_prompt_with_a_common_beginning_reuses_all_of_it() -> None:
    pool = KVPool(SHAPE, 10_000)
    common = [*range(200)]
    assert [run(pool, [*common, n, n, n], [n]) for n in (301, 302, 303, 304)] == [0, 0, 200, 200]


def test_a_failed_step_falls_back_to_the_last_saved_state() -> None:
    pool = KVPool(SHAPE, 10_000)
    cache = pool.acquire([*range(50)], None, 60)
    assert isinstance(cache, RecurrentCache)
    step(cache, [*range(50)])
    cache.invalidate()
    cache.truncate(50)
    assert cache.length == 49
    assert cache.state is not None
    assert torch.equal(cache.state[0], state_after(range(49))[0])


def test_without_chunked_prompts_a_prompt_is_one_step_and_later_tokens_single_steps() -> None:
    pool = KVPool(replace(SHAPE, whole_prompts=True), 10_000)
    cache = pool.acquire([*range(50)], None, 60)
    assert cache is not None
    assert cache.step_limit(16, 50) == 49
    cache.append([*range(49)])
    assert cache.step_limit(16, 5) == 1


@pytest.mark.parametrize("whole", [False, True])
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=30), st.integers(1, 12)), max_size=8)
)
@settings(deadline=None, max_examples=50)
def test_a_reused_state_is_that_of_its_tokens(
    whole: bool, turns: list[tuple[list[int], int]]
) -> None:
    pool = KVPool(replace(SHAPE, whole_prompts=whole), 400)
    for bits, length in turns:
        if len(bits) + 2 * length + SHAPE.state_tokens < 400:
            run(pool, [*bits, *[0] * length], [1] * length)
    assert 0 <= pool.used_tokens <= pool.budget_tokens
