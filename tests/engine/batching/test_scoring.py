"""Scoring: equal to the log-likelihoods of whole texts, with shared prefixes computed once."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmctl.engine.batching.forward.cache_layout import cache_layout
from llmctl.engine.batching.forward.fused import FusedForward
from llmctl.engine.batching.forward.packed import (
    PREFILL_CHUNK_TOKENS,
    BatchItem,
    Forward,
    PackedForward,
)
from llmctl.engine.batching.forward.recurrent import RecurrentForward
from llmctl.engine.batching.kv_cache import KVShape
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.scoring import TokenizedContinuation, score_steps
from llmctl.types import Score
from tests.architectures import ARCHITECTURES
from tests.tiny import save_tiny_model

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fused": ("llama", {}),
    "fused with a window": ("mistral", {"sliding_window": 12}),
    "batched": ("gpt_neox", {"rotary_pct": 0.25, "num_key_value_heads": 4}),
    "batched with a window": ("gemma3_text", {"sliding_window": 8, "num_hidden_layers": 6}),
    **{name: (name, ARCHITECTURES[name][1]) for name in ("deepseek_v3", "falcon_h1", "jamba")},
}


@dataclass
class CountingForward:
    """Counts the tokens that a forward pass computes."""

    inner: Forward
    computed: int = 0
    largest_step: int = 0

    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        self._count(batch)
        return self.inner.run(batch)

    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        self._count(batch)
        return self.inner.states(batch)

    def _count(self, batch: Sequence[BatchItem]) -> None:
        count = sum(len(item.token_ids) for item in batch)
        self.computed += count
        self.largest_step = max(self.largest_step, count)

    def put_adapter(self, *_: Any) -> None: ...

    def drop_adapter(self, *_: Any) -> None: ...


@dataclass
class ScoredModel:
    model: Any
    """The stock model, for reference scores."""
    forward: Forward
    shape: KVShape

    def reference(self, continuation: TokenizedContinuation) -> Score:
        ids, count = continuation
        with torch.inference_mode():
            table = self.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        at = range(len(ids) - count, len(ids))
        greedy = all(int(table[i - 1].argmax()) == ids[i] for i in at)
        return Score(sum(float(table[i - 1, ids[i]]) for i in at), count, greedy)

    def pool(self, budget: int = 20_000) -> KVPool:
        return KVPool(self.shape, budget)


@pytest.fixture(
    scope="module",
    # Transformers computes Jamba's states token by token in Python.
    params=[pytest.param(k, marks=pytest.mark.slow) if k == "jamba" else k for k in KINDS],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ScoredModel:
    model_type, overrides = KINDS[request.param]
    folder = tmp_path_factory.mktemp("scored") / model_type
    save_tiny_model(folder, model_type=model_type, max_position_embeddings=4096, **overrides)
    return load(folder, fused=request.param.startswith("fused"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ScoredModel:
    folder = tmp_path_factory.mktemp("scored") / "tiny"
    return load(save_tiny_model(folder, max_position_embeddings=4096), fused=True)


def load(folder: Path, *, fused: bool) -> ScoredModel:
    stock, run = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in "ab")
    layout = cache_layout(stock)
    forward: Forward
    if fused:
        forward = FusedForward(run)
    elif layout.is_recurrent:
        layout = layout.candidates[int(stock.config.model_type == "jamba")]
        forward = RecurrentForward(run, layout)
    else:
        forward = PackedForward(run, layout)
    return ScoredModel(stock, forward, layout.shape)


def run_all(steps: Generator[None, None, tuple[Score, ...]]) -> tuple[Score, ...]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            scores: tuple[Score, ...] = end.value
            return scores


def text(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(250), k=length)


def continuations_of(
    context: list[int], continuations: Sequence[list[int]]
) -> list[TokenizedContinuation]:
    return [(context + continuation, len(continuation)) for continuation in continuations]


SHARED = text(40, 9)
CASES: dict[str, list[TokenizedContinuation]] = {
    "one token each": continuations_of(text(10, 1), [[3], [4], [5], [3]]),
    "no context": [(ids, len(ids) - 1) for ids in (text(2, 1), text(9, 2), text(40, 3))],
    "a single one without context": [(text(2, 4), 1)],
    "a single long one": continuations_of(text(30, 5), [text(1100, 6)]),
    "a long context": continuations_of(text(600, 7), [text(n, n) for n in (1, 2, 30)]),
    "a context of exactly two chunks": continuations_of(
        text(2 * PREFILL_CHUNK_TOKENS + 1, 7), [[1], [2, 3]]
    ),
    "shared prefixes": continuations_of(
        text(20, 8), [SHARED, [*SHARED, 1], SHARED[:7], SHARED[:39]]
    ),
    "one the prefix of the others": continuations_of(text(20, 8), [[1], [1, 2], [1, 2, 3]]),
    "equal texts split at different places": [(text(50, 1), 3), (text(50, 1), 40)],
    "branches of exactly a chunk": continuations_of(text(9, 1), [text(200, 1), text(312, 2)]),
    "more than a chunk": continuations_of(text(300, 9), [text(n, n) for n in (400, 3, 500)]),
}


@pytest.mark.parametrize("continuations", CASES.values(), ids=CASES.keys())
def test_scores_equal_those_of_each_whole_text(
    model: ScoredModel, continuations: list[TokenizedContinuation]
) -> None:
    pool = model.pool()
    scores = run_all(score_steps(model.forward, pool, continuations, None))
    assert_equal(scores, [model.reference(one) for one in continuations])
    assert pool.active_count == 0
    # Again, with most of it in the pool.
    assert_equal(run_all(score_steps(model.forward, pool, continuations, None)), scores)
    pool.clear()
    assert pool.used_tokens == 0


@pytest.mark.parametrize("continuations", CASES.values(), ids=CASES.keys())
def test_scores_do_not_depend_on_the_chunk_size(
    llama: ScoredModel, continuations: list[TokenizedContinuation]
) -> None:
    expected = run_all(score_steps(llama.forward, llama.pool(), continuations, None))
    forward, pool = CountingForward(llama.forward), llama.pool()
    scores = run_all(score_steps(forward, pool, continuations, None, chunk=lambda: 100))
    assert forward.largest_step <= 2 * 100
    assert_equal(scores, expected)
    # Replies start and end meanwhile.
    rng = random.Random(1)
    steps = score_steps(forward, llama.pool(), continuations, None, chunk=lambda: now)
    while True:
        now = rng.choice([100, PREFILL_CHUNK_TOKENS])
        try:
            next(steps)
        except StopIteration as end:
            assert_equal(end.value, expected)
            break
    assert pool.active_count == 0


def assert_equal(scores: Sequence[Score], expected: Sequence[Score]) -> None:
    for score, wanted in zip(scores, expected, strict=True):
        assert score.logprob == pytest.approx(wanted.logprob, rel=1e-4, abs=1e-3)
        assert (score.token_count, score.is_greedy) == (wanted.token_count, wanted.is_greedy)


@pytest.mark.parametrize("seed", range(5))
def test_random_questions_in_sequence_have_the_reference_scores(
    model: ScoredModel, seed: int
) -> None:
    rng = random.Random(seed)
    pool, head = model.pool(budget=rng.choice([1200, 20_000])), text(rng.randrange(300), seed)
    for _ in range(3):
        context = head + text(rng.randrange(1, 40), rng.randrange(99))
        tails = [text(rng.choice([1, 2, 5, 60]), rng.randrange(5)) for _ in range(4)]
        continuations = continuations_of(context, tails[: rng.randrange(1, 5)])
        scores = run_all(score_steps(model.forward, pool, continuations, None))
        assert_equal(scores, [model.reference(one) for one in continuations])


def test_is_greedy_marks_what_greedy_decoding_generates(llama: ScoredModel) -> None:
    ids = text(12, 3)
    for _ in range(4):
        with torch.inference_mode():
            ids.append(int(llama.model(torch.tensor([ids])).logits[0, -1].argmax()))
    context, greedy = ids[:12], ids[12:]
    continuations = continuations_of(
        context, [greedy, [*greedy[:3], (greedy[3] + 1) % 250], greedy[:2]]
    )
    scores = run_all(score_steps(llama.forward, llama.pool(), continuations, None))
    assert [score.is_greedy for score in scores] == [True, False, True]


@pytest.mark.parametrize("length", [3, 300])
def test_few_shot_examples_are_computed_once(llama: ScoredModel, length: int) -> None:
    forward, pool, head = CountingForward(llama.forward), llama.pool(), text(900, 1)
    own_tokens = 0
    for seed in range(5):
        continuations = continuations_of(
            head + text(20, seed), [text(length, seed + i) for i in range(4)]
        )
        own_tokens += 20 + 4 * length
        run_all(score_steps(forward, pool, continuations, None))
    assert forward.computed <= len(head) + own_tokens
    assert forward.largest_step <= 2 * PREFILL_CHUNK_TOKENS
    assert pool.active_count == 0


def test_a_long_question_is_computed_once_for_all_its_answers(llama: ScoredModel) -> None:
    forward, pool, head, question = (
        CountingForward(llama.forward),
        llama.pool(),
        text(100, 1),
        text(900, 2),
    )
    continuations = continuations_of(head, [[*question, letter] for letter in range(4)])
    scores = run_all(score_steps(forward, pool, continuations, None))
    assert forward.computed == len(head) + len(question)
    assert_equal(scores, [llama.reference(one) for one in continuations])
    assert pool.active_count == 0


def test_a_text_larger_than_the_budget_is_an_error_that_leaves_no_cache(
    llama: ScoredModel,
) -> None:
    pool = llama.pool(budget=100)
    with pytest.raises(MemoryError):
        run_all(score_steps(llama.forward, pool, continuations_of(text(200, 1), [[1], [2]]), None))
    assert pool.active_count == 0
    scores = run_all(
        score_steps(llama.forward, pool, continuations_of(text(50, 1), [[1], [2]]), None)
    )
    assert len(scores) == 2


@pytest.mark.parametrize("steps", [1, 2])
def test_a_cancelled_score_leaves_no_active_cache(llama: ScoredModel, steps: int) -> None:
    pool = llama.pool()
    scoring = score_steps(llama.forward, pool, continuations_of(text(1600, 1), [[1], [2]]), None)
    for _ in range(steps):
        next(scoring)
    scoring.close()
    assert pool.active_count == 0


def test_a_score_waits_for_the_cache_space_of_a_reply(llama: ScoredModel) -> None:
    pool, continuations = llama.pool(budget=400), continuations_of(text(300, 1), [[1], [2]])
    reply = pool.acquire(text(200, 2), None, 201)
    assert reply is not None
    scoring = score_steps(llama.forward, pool, continuations, None)
    for _ in range(3):
        next(scoring)
    llama.forward.run([BatchItem(reply, text(200, 2))])
    pool.release(reply)
    assert_equal(run_all(scoring), [llama.reference(one) for one in continuations])


def test_scores_are_correct_with_decoding_steps_between_their_steps(llama: ScoredModel) -> None:
    pool, ids = llama.pool(), text(300, 2)
    continuations = continuations_of(ids + text(1300, 1), [[1], [2, 3], text(700, 4)])
    scoring = score_steps(llama.forward, pool, continuations, None)
    reply = pool.acquire(ids, None, 400)
    assert reply is not None
    logits = llama.forward.run([BatchItem(reply, ids)])
    generated, scores = [], None
    while scores is None:
        generated.append(int(logits.argmax()))
        assert pool.reserve(reply, reply.length + 1)
        logits = llama.forward.run([BatchItem(reply, generated[-1:])])
        try:
            next(scoring)
        except StopIteration as end:
            scores = end.value
    assert_equal(scores, [llama.reference(one) for one in continuations])
    with torch.inference_mode():
        table = llama.model(torch.tensor([ids + generated])).logits[0]
    assert table[len(ids) - 1 : -1].argmax(-1).tolist() == generated
