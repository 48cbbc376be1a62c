"""Scores are those of the whole text computed anew, and what texts share is computed once."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmctl.engine.batching.forward.fused import FusedForward
from llmctl.engine.batching.forward.packed import (
    PREFILL_CHUNK_TOKENS,
    BatchItem,
    Forward,
    PackedForward,
    kv_shape,
)
from llmctl.engine.batching.kv import KVPool, KVShape
from llmctl.engine.batching.scoring import TokenizedContinuation, score_steps
from llmctl.types import Score
from tests.tiny import save_tiny_model

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fused": ("llama", {}),
    "fused with a window": ("mistral", {"sliding_window": 12}),
    "batched": ("gpt_neox", {"rotary_pct": 0.25, "num_key_value_heads": 4}),
    "batched with a window": ("gemma3_text", {"sliding_window": 8, "num_hidden_layers": 6}),
}


@dataclass
class Counted:
    """Counts the tokens that a forward pass computes."""

    inner: Forward
    computed: int = 0
    largest_step: int = 0

    def run(self, work: Sequence[BatchItem]) -> Tensor:
        self._count(work)
        return self.inner.run(work)

    def states(self, work: Sequence[BatchItem]) -> Tensor:
        self._count(work)
        return self.inner.states(work)

    def _count(self, work: Sequence[BatchItem]) -> None:
        count = sum(len(item.token_ids) for item in work)
        self.computed += count
        self.largest_step = max(self.largest_step, count)

    def put_adapter(self, *_: Any) -> None: ...

    def drop_adapter(self, *_: Any) -> None: ...


@dataclass
class Setting:
    model: Any
    """The stock model, which says what is right."""
    forward: Forward
    shape: KVShape

    def naive(self, pair: TokenizedContinuation) -> Score:
        ids, tail = pair
        with torch.inference_mode():
            table = self.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        at = range(len(ids) - tail, len(ids))
        greedy = all(int(table[i - 1].argmax()) == ids[i] for i in at)
        return Score(sum(float(table[i - 1, ids[i]]) for i in at), tail, greedy)

    def pool(self, budget: int = 20_000) -> KVPool:
        return KVPool(self.shape, budget)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    model_type, overrides = KINDS[request.param]
    folder = tmp_path_factory.mktemp("scored") / model_type
    save_tiny_model(folder, model_type=model_type, max_position_embeddings=4096, **overrides)
    return setting(folder, fused=request.param.startswith("fused"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("scored") / "tiny"
    return setting(save_tiny_model(folder, max_position_embeddings=4096), fused=True)


def setting(folder: Path, *, fused: bool) -> Setting:
    stock, run = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in "ab")
    shape = kv_shape(stock)
    assert shape is not None
    return Setting(stock, FusedForward(run) if fused else PackedForward(run), shape)


def finish(steps: Generator[None, None, tuple[Score, ...]]) -> tuple[Score, ...]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            scores: tuple[Score, ...] = end.value
            return scores


def text(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(250), k=length)


def pairs_of(context: list[int], continuations: Sequence[list[int]]) -> list[TokenizedContinuation]:
    return [(context + continuation, len(continuation)) for continuation in continuations]


SHARED = text(40, 9)
QUESTIONS: dict[str, list[TokenizedContinuation]] = {
    "one token each": pairs_of(text(10, 1), [[3], [4], [5], [3]]),
    "no context": [(ids, len(ids) - 1) for ids in (text(2, 1), text(9, 2), text(40, 3))],
    "a single one without context": [(text(2, 4), 1)],
    "a single long one": pairs_of(text(30, 5), [text(1100, 6)]),
    "a long context": pairs_of(text(600, 7), [text(n, n) for n in (1, 2, 30)]),
    "a context of just two chunks": pairs_of(text(2 * PREFILL_CHUNK_TOKENS + 1, 7), [[1], [2, 3]]),
    "shared beginnings": pairs_of(text(20, 8), [SHARED, [*SHARED, 1], SHARED[:7], SHARED[:39]]),
    "one the beginning of all": pairs_of(text(20, 8), [[1], [1, 2], [1, 2, 3]]),
    "equal texts cut at different places": [(text(50, 1), 3), (text(50, 1), 40)],
    "branches of just a chunk": pairs_of(text(9, 1), [text(200, 1), text(312, 2)]),
    "more than a chunk": pairs_of(text(300, 9), [text(n, n) for n in (400, 3, 500)]),
}


@pytest.mark.parametrize("pairs", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_scores_equal_those_of_each_whole_text_alone(
    model: Setting, pairs: list[TokenizedContinuation]
) -> None:
    pool = model.pool()
    scores = finish(score_steps(model.forward, pool, pairs, None))
    assert_equal(scores, [model.naive(pair) for pair in pairs])
    assert pool.active_count == 0
    # Once more, with most of it in the pool already.
    assert_equal(finish(score_steps(model.forward, pool, pairs, None)), scores)
    assert pool.used_tokens == pool.idle_tokens


@pytest.mark.parametrize("pairs", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_replies_wait_for_small_steps_and_scores_stay_the_same(
    llama: Setting, pairs: list[TokenizedContinuation]
) -> None:
    right = finish(score_steps(llama.forward, llama.pool(), pairs, None))
    forward, pool = Counted(llama.forward), llama.pool()
    scores = finish(score_steps(forward, pool, pairs, None, chunk=lambda: 100))
    assert forward.largest_step <= 2 * 100
    assert_equal(scores, right)
    # Replies come and go meanwhile.
    dice = random.Random(1)
    steps = score_steps(forward, llama.pool(), pairs, None, chunk=lambda: now)
    while True:
        now = dice.choice([100, PREFILL_CHUNK_TOKENS])
        try:
            next(steps)
        except StopIteration as end:
            assert_equal(end.value, right)
            break
    assert pool.active_count == 0


def assert_equal(scores: Sequence[Score], expected: Sequence[Score]) -> None:
    for score, right in zip(scores, expected, strict=True):
        assert score.logprob == pytest.approx(right.logprob, rel=1e-4, abs=1e-3)
        assert (score.token_count, score.is_greedy) == (right.token_count, right.is_greedy)


@pytest.mark.parametrize("seed", range(5))
def test_random_questions_score_right_one_after_the_other(model: Setting, seed: int) -> None:
    dice = random.Random(seed)
    pool, head = model.pool(budget=dice.choice([1200, 20_000])), text(dice.randrange(300), seed)
    for _ in range(3):
        context = head + text(dice.randrange(1, 40), dice.randrange(99))
        tails = [text(dice.choice([1, 2, 5, 60]), dice.randrange(5)) for _ in range(4)]
        pairs = pairs_of(context, tails[: dice.randrange(1, 5)])
        scores = finish(score_steps(model.forward, pool, pairs, None))
        assert_equal(scores, [model.naive(pair) for pair in pairs])


def test_what_greedy_decoding_would_say_is_known_as_such(llama: Setting) -> None:
    ids = text(12, 3)
    for _ in range(4):
        with torch.inference_mode():
            ids.append(int(llama.model(torch.tensor([ids])).logits[0, -1].argmax()))
    context, said = ids[:12], ids[12:]
    pairs = pairs_of(context, [said, [*said[:3], (said[3] + 1) % 250], said[:2]])
    scores = finish(score_steps(llama.forward, llama.pool(), pairs, None))
    assert [score.is_greedy for score in scores] == [True, False, True]


@pytest.mark.parametrize("length", [3, 300])
def test_the_examples_of_an_exam_are_computed_once(llama: Setting, length: int) -> None:
    forward, pool, head = Counted(llama.forward), llama.pool(), text(900, 1)
    asked = 0
    for seed in range(5):
        pairs = pairs_of(head + text(20, seed), [text(length, seed + i) for i in range(4)])
        asked += 20 + 4 * length
        finish(score_steps(forward, pool, pairs, None))
    assert forward.computed <= len(head) + asked
    assert forward.largest_step <= 2 * PREFILL_CHUNK_TOKENS
    assert pool.active_count == 0


def test_a_long_question_is_read_once_for_all_its_answers(llama: Setting) -> None:
    forward, pool, head, question = Counted(llama.forward), llama.pool(), text(100, 1), text(900, 2)
    pairs = pairs_of(head, [[*question, letter] for letter in range(4)])
    scores = finish(score_steps(forward, pool, pairs, None))
    assert forward.computed == len(head) + len(question)
    assert_equal(scores, [llama.naive(pair) for pair in pairs])
    assert pool.active_count == 0


def test_a_text_the_whole_budget_cannot_hold_is_an_error_that_leaves_nothing(
    llama: Setting,
) -> None:
    pool = llama.pool(budget=100)
    with pytest.raises(MemoryError):
        finish(score_steps(llama.forward, pool, pairs_of(text(200, 1), [[1], [2]]), None))
    assert pool.active_count == 0
    scores = finish(score_steps(llama.forward, pool, pairs_of(text(50, 1), [[1], [2]]), None))
    assert len(scores) == 2


@pytest.mark.parametrize("steps", [1, 2])
def test_a_score_that_is_given_up_halfway_leaves_nothing(llama: Setting, steps: int) -> None:
    pool = llama.pool()
    scoring = score_steps(llama.forward, pool, pairs_of(text(1600, 1), [[1], [2]]), None)
    for _ in range(steps):
        next(scoring)
    scoring.close()
    assert pool.active_count == 0


def test_a_score_waits_for_room_that_a_reply_holds(llama: Setting) -> None:
    pool, pairs = llama.pool(budget=400), pairs_of(text(300, 1), [[1], [2]])
    reply = pool.open(text(200, 2), None, 201)
    assert reply is not None
    scoring = score_steps(llama.forward, pool, pairs, None)
    for _ in range(3):
        next(scoring)
    llama.forward.run([BatchItem(reply, text(200, 2))])
    pool.release(reply)
    assert_equal(finish(scoring), [llama.naive(pair) for pair in pairs])


def test_scores_stay_right_while_replies_are_written_between_their_steps(llama: Setting) -> None:
    pool, ids = llama.pool(), text(300, 2)
    pairs = pairs_of(ids + text(1300, 1), [[1], [2, 3], text(700, 4)])
    scoring = score_steps(llama.forward, pool, pairs, None)
    reply = pool.open(ids, None, 400)
    assert reply is not None
    logits = llama.forward.run([BatchItem(reply, ids)])
    written, scores = [], None
    while scores is None:
        written.append(int(logits.argmax()))
        assert pool.reserve(reply, reply.length + 1)
        logits = llama.forward.run([BatchItem(reply, written[-1:])])
        try:
            next(scoring)
        except StopIteration as end:
            scores = end.value
    assert_equal(scores, [llama.naive(pair) for pair in pairs])
    with torch.inference_mode():
        table = llama.model(torch.tensor([ids + written])).logits[0]
    assert table[len(ids) - 1 : -1].argmax(-1).tolist() == written
