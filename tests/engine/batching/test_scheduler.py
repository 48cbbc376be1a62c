"""Scheduler: every request gets its own text, and no cache is leaked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llmctl.engine.batching.forward.cache_layout import cache_layout
from llmctl.engine.batching.forward.fused import FusedForward
from llmctl.engine.batching.forward.packed import (
    PREFILL_CHUNK_TOKENS,
    Forward,
    PackedForward,
)
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.sampling.speculation import DRAFT_TOKENS, PromptLookup
from llmctl.engine.batching.scheduler import MIXED_CHUNK_TOKENS, Scheduler
from llmctl.errors import EngineFailedError, OutOfMemoryError
from llmctl.types import GenerationChunk, SamplingParams
from tests.engine.batching.scripted import FAILING, ScriptedRequest, exactly, make_scheduler
from tests.tiny import byte_tokenizer, save_tiny_model


def run_all(
    scheduler: Scheduler, pool: KVPool, requests: Sequence[ScriptedRequest], rows: int = 16
) -> int:
    """Submit and cancel every request at its step; return the number of steps."""
    arriving, leaving = list(requests), []
    for step in range(5000):
        for request in [a for a in arriving if a.arrives <= step]:
            arriving.remove(request)
            stream = request.submit(scheduler)
            if request.cancelled_after is not None:
                leaving.append((step + request.cancelled_after, stream))
        for _, stream in [(at, s) for at, s in leaving if at <= step]:
            stream.cancel()
        if not arriving and not scheduler.busy:
            break
        scheduler.step()
        assert scheduler.state().running <= rows
        assert pool.used_tokens <= pool.budget_tokens
    else:
        pytest.fail("a request never ends")
    for request in requests:
        assert request.ends == 1
        ends = [not isinstance(item, GenerationChunk) for item in request.items]
        assert ends == [False] * (len(ends) - 1) + [True]
    assert pool.active_count == 0
    pool.clear()
    assert pool.used_tokens == 0
    return step


@st.composite
def scripted_requests(draw: st.DrawFn) -> ScriptedRequest:
    head = [draw(st.integers(0, 2))] * draw(st.sampled_from([0, 3, 40, 100, 300, 700]))
    tail = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    if draw(st.integers(0, 9)) == 0:
        tail.insert(draw(st.integers(0, len(tail))), FAILING)
    sampling: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"temperature": 0},
                {"temperature": 0, "repetition_penalty": 1.3},
                {"temperature": 1.0, "seed": 3, "n": 2},
                {"temperature": 0.8, "top_p": 0.7, "seed": 4},
                {"temperature": 0, "n": 3},
            ]
        )
    )
    return ScriptedRequest(
        head + tail,
        SamplingParams(max_new_tokens=draw(st.sampled_from([1, 2, 7, 40])), **sampling),
        arrives=draw(st.integers(0, 25)),
        cancelled_after=draw(st.sampled_from([None, None, None, 0, 1, 5, 20])),
        speculative=draw(st.booleans()),
        fails_at=draw(st.sampled_from([None] * 8 + [0, 3])),
    )


def assert_correct(request: ScriptedRequest) -> None:
    expected = request.expected()
    whole = all(text == wanted for text, wanted in zip(request.texts, expected, strict=True))
    if FAILING in request.prompt:
        assert isinstance(request.error, EngineFailedError) or request.cancelled_after is not None
        assert not any(request.texts)
    elif request.fails_at is not None and max(map(len, expected)) > request.fails_at:
        assert isinstance(request.error, EngineFailedError) or request.cancelled_after is not None
    elif request.cancelled_after is None:
        assert request.error is None
        assert whole, (request.texts, expected)
        usage = [c.usage for c in request.items if isinstance(c, GenerationChunk) and c.usage]
        assert [u.prompt_tokens for u in usage] == [len(request.prompt)]
    for text, wanted in zip(request.texts, expected, strict=True):
        assert wanted.startswith(text)


@pytest.mark.slow
@given(
    st.lists(scripted_requests(), min_size=1, max_size=12),
    st.integers(0, 600),
    st.sampled_from([1, 2, 3, 16]),
    st.sampled_from([1, 2, 100]),
)
@settings(max_examples=120, deadline=None)
def test_every_request_ends_once_with_its_own_text(
    requests: list[ScriptedRequest], spare: int, rows: int, largest_batch: int
) -> None:
    # Space for the largest request alone, and little more.
    most = max(len(a.prompt) + (a.params.max_new_tokens or 0) for a in requests)
    scheduler, pool, _ = make_scheduler(most + spare, rows, largest_batch)
    run_all(scheduler, pool, requests, rows)
    for request in requests:
        assert_correct(request)


def test_only_a_request_larger_than_the_budget_fails() -> None:
    scheduler, pool, _ = make_scheduler(budget=200)
    large, grows, small = (
        ScriptedRequest([1] * 300),
        ScriptedRequest([2] * 195, exactly(50)),
        ScriptedRequest([3] * 20, arrives=2),
    )
    run_all(scheduler, pool, [large, grows, small])
    assert isinstance(large.error, OutOfMemoryError)
    assert isinstance(grows.error, OutOfMemoryError)
    assert grows.expected()[0].startswith(grows.texts[0])
    assert_correct(small)


def test_a_request_waits_for_the_cache_space_of_a_score() -> None:
    scheduler, pool, _ = make_scheduler(budget=200)
    scoring = pool.acquire([1, 2], None, 150)
    assert scoring is not None
    request = ScriptedRequest([3] * 100)
    request.submit(scheduler)
    for _ in range(3):
        scheduler.step()
    assert request.items == []
    pool.release(scoring)
    while scheduler.busy:
        scheduler.step()
    assert_correct(request)


class WrongDrafts(PromptLookup):
    """Always proposes the longest draft, of wrong tokens."""

    def propose(self, token_ids: Sequence[int]) -> list[int]:  # noqa: ARG002  a fake
        return [FAILING - 1] * DRAFT_TOKENS


def test_a_draft_preempts_no_sequence() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=40)
    prompts = ([first] + [1, 2, 3, 4] * 30 for first in range(500))
    # Replies that end just before they use the space that a draft would need.
    fits = [a for p in prompts if len((a := ScriptedRequest(p, params)).expected()[0]) in (4, 5)][
        :2
    ]
    for request in fits:
        request.lookup = WrongDrafts()
    scheduler, pool, forward = make_scheduler(budget=256)
    run_all(scheduler, pool, fits)
    for request in fits:
        assert_correct(request)
    # No prompt is computed twice; at most all draft tokens are wrong.
    assert forward.computed <= 2 * 121 + 2 * 6 * (1 + DRAFT_TOKENS)


@pytest.mark.parametrize("choices", [1, 4])
def test_a_shared_prefix_is_computed_once(choices: int) -> None:
    scheduler, pool, forward = make_scheduler()
    head = [1, 2, 3, 4] * 75
    params = SamplingParams(temperature=0, max_new_tokens=5, n=choices)
    requests = [ScriptedRequest([*head, i, i, 9 - i], params, speculative=False) for i in range(6)]
    run_all(scheduler, pool, requests)
    for request in requests:
        assert_correct(request)
    assert forward.computed <= len(head) + 6 * choices * (3 + 4)
    assert sum(u.cached_tokens >= len(head) for u in map(usage, requests)) == 5


def usage(request: ScriptedRequest) -> Any:
    return next(c.usage for c in request.items if isinstance(c, GenerationChunk) and c.usage)


def test_decoding_continues_at_every_step_of_a_long_prefill() -> None:
    scheduler, _, _ = make_scheduler()
    short = ScriptedRequest([1, 2], exactly(60))
    for request in (ScriptedRequest([3] * 1500), short):
        request.submit(scheduler)
    lengths = [0]
    while scheduler.busy:
        scheduler.step()
        lengths.append(len(short.texts[0]))
    assert lengths[lengths.index(1) :][:60] == list(range(1, 61))


@pytest.mark.parametrize("kind", ["score", "embed"])
def test_scoring_and_embedding_use_small_chunks_while_sequences_decode(kind: str) -> None:
    scheduler, _, forward = make_scheduler()
    ids = [1] * 1500
    steps = scheduler.score([(ids, 9)], None) if kind == "score" else scheduler.embed(ids, None)
    sizes = []
    stream = ScriptedRequest([1, 2, 3], exactly(50)).submit(scheduler)
    for turn in range(4):
        if turn == 2:
            stream.cancel()
        scheduler.step()
        before = forward.computed
        next(steps)
        sizes.append(forward.computed - before)
    assert sizes == [
        MIXED_CHUNK_TOKENS,
        MIXED_CHUNK_TOKENS,
        PREFILL_CHUNK_TOKENS,
        PREFILL_CHUNK_TOKENS,
    ]
    steps.close()


def test_speculation_needs_fewer_steps_for_repetitive_text() -> None:
    prompt = [1, 2, 3, 4, 5]
    steps = []
    for speculative in (False, True):
        params = SamplingParams(temperature=0, max_new_tokens=300)
        request = ScriptedRequest(prompt, params, speculative=speculative)
        scheduler, pool, _ = make_scheduler()
        steps.append(run_all(scheduler, pool, [request]))
        assert_correct(request)
    assert steps[1] < steps[0]


def test_the_youngest_sequence_is_preempted_and_the_oldest_never() -> None:
    scheduler, _, forward = make_scheduler(budget=300)
    requests = [ScriptedRequest([i] * 60, exactly(150)) for i in range(4)]
    ended: list[int] = []
    for request in requests:
        request.submit(scheduler)
    while scheduler.busy:
        scheduler.step()
        ended += [i for i, a in enumerate(requests) if a.ends and i not in ended]
    assert [a.texts for a in requests] == [a.expected() for a in requests]
    assert ended == [0, 1, 2, 3]
    assert forward.computed > 4 * 60 + 4 * 149


Kind = Literal["fused", "batched"]


def make_real_scheduler(folder: Path, kind: Kind, budget: int) -> tuple[Scheduler, KVPool]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layout = cache_layout(model)
    forward: Forward = FusedForward(model) if kind == "fused" else PackedForward(model, layout)
    pool = KVPool(layout.shape, budget)
    return Scheduler(forward, pool, 16, TokenBytes(byte_tokenizer())), pool


@pytest.fixture(scope="module")
def long_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "tiny"
    return save_tiny_model(folder, max_position_embeddings=2048)


@pytest.mark.parametrize("kind", ["fused", "batched"])
def test_a_model_generates_the_same_text_in_a_full_cache_as_alone(
    long_tiny: Path, kind: Kind
) -> None:
    def requests() -> list[ScriptedRequest]:
        params = SamplingParams(temperature=0, max_new_tokens=16)
        heads = [[5, 6, 7, 8] * n for n in (1, 30, 200)]
        prompts = [[*heads[i % 3], 20 + i, *range(i)] for i in range(8)]
        return [ScriptedRequest(p, params, arrives=3 * i) for i, p in enumerate(prompts)]

    together = requests()
    run_all(*make_real_scheduler(long_tiny, kind, 900), together)
    scheduler, pool = make_real_scheduler(long_tiny, kind, 20_000)
    for request, alone in zip(together, requests(), strict=True):
        pool.clear()
        alone.speculative = False
        run_all(scheduler, pool, [alone])
        assert request.error is None
        assert request.texts == alone.texts


def test_after_running_out_of_memory_fewer_rows_run_and_replies_stay_correct() -> None:
    scheduler, pool, forward = make_scheduler(budget=20_000, largest_batch=3)
    requests = [ScriptedRequest([i + 1] * 40, exactly(30)) for i in range(8)]
    run_all(scheduler, pool, requests)
    for request in requests:
        assert_correct(request)
    failed = forward.steps
    again = [ScriptedRequest([i + 1] * 50, exactly(10)) for i in range(6)]
    run_all(scheduler, pool, again)
    # From now on three rows run at a time: no step fails, so none is repeated.
    assert forward.steps - failed <= 2 * (10 + 2)


def test_running_out_of_memory_with_one_row_fails_it_and_lowers_the_budget() -> None:
    scheduler, pool, _ = make_scheduler(budget=4000, largest_batch=0)
    request = ScriptedRequest([1] * 2000)
    run_all(scheduler, pool, [request])
    assert isinstance(request.error, OutOfMemoryError)
    assert 1000 <= pool.budget_tokens < 4000
