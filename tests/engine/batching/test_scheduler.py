"""Whoever comes, goes or fails, and however little room there is: the right text, and no leaks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from llmctl.engine.batching.output_state import OutputState
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.sampling.sampler import SequenceSampler, sample
from llmctl.engine.batching.sampling.speculation import DRAFT_TOKENS, PromptLookup
from llmctl.engine.batching.scheduler import MIXED_CHUNK_TOKENS, Scheduler
from llmctl.engine.batching.sequence import RequestState
from llmctl.engine.batching.sequence import ScheduledSequence as RowSequence
from llmctl.engine.stream import GenerationStream, StreamItem
from llmctl.errors import EngineFailedError, LlmctlError, OutOfMemoryError
from llmctl.types import DEFAULT_SAMPLING, GenerationChunk, SamplingParams
from tests.tiny import byte_tokenizer, save_tiny_model

SHAPE = KVShape(layers=1, kv_heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu"))
VOCAB = 12
END, POISON = 10, 11
GREEDY = SamplingParams(temperature=0, max_new_tokens=10)


def endless(tokens: int) -> SamplingParams:
    """Sampling that ends at its limit alone."""
    bias = ((END, -99.0),)
    return SamplingParams(temperature=1.0, seed=1, max_new_tokens=tokens, logit_bias=bias)


def fake_logits(ids: Sequence[int]) -> Tensor:
    """Logits (vocab,) that depend on the whole text, yet let it fall into repetitions."""
    random = torch.Generator().manual_seed(hash((*ids[:6], *ids[-2:])) % 2**31)
    logits = torch.randn(VOCAB, generator=random)
    logits[END] = 10.0 if sum(ids) % 23 == 0 else -10.0
    logits[POISON] = -100
    return logits


class FakeForward:
    """A model whose logits depend on what lies in the buffers, and that looks at every step."""

    def __init__(self, pool: KVPool, largest_batch: int = 100) -> None:
        self.pool = pool
        self.computed = 0
        self.steps = 0
        self._largest_batch = largest_batch

    def run(self, work: Sequence[BatchItem]) -> Tensor:
        self._check(work)
        if any(POISON in item.token_ids for item in work):
            raise RuntimeError("poisoned")
        self.steps += 1
        parts = [torch.zeros(0, VOCAB)]
        for item in work:
            past, count = item.cache.length, len(item.token_ids)
            buffer = item.cache.keys[0][0, 0, :, 0]
            assert buffer[:past].tolist() == item.cache.token_ids
            buffer[past : past + count] = torch.tensor(item.token_ids)
            self.computed += count
            for index in item.logits:
                parts.append(fake_logits(buffer[: past + index % count + 1].int().tolist())[None])
            item.cache.token_ids.extend(item.token_ids)
        if len(work) > self._largest_batch:
            # The logits are the largest tensor of a step, so memory often ends right there.
            raise MemoryError("too many rows")
        return torch.cat(parts)

    def states(self, work: Sequence[BatchItem]) -> Tensor:
        self.run(work)
        return torch.zeros(sum(len(item.token_ids) for item in work), 1)

    def put_adapter(self, *_: Any) -> None: ...

    def drop_adapter(self, *_: Any) -> None: ...

    def _check(self, work: Sequence[BatchItem]) -> None:
        assert len({id(item.cache) for item in work}) == len(work)
        assert self.pool.used_tokens <= self.pool.budget_tokens
        for item in work:
            assert item.cache.length + len(item.token_ids) <= item.cache.capacity
        decoding = [w for w in work if w.logits and len(w.token_ids) in (1, len(w.logits))]
        prompts = sum(len(w.token_ids) for w in work if w not in decoding)
        assert prompts <= (MIXED_CHUNK_TOKENS if decoding else PREFILL_CHUNK_TOKENS)


class Letters:
    """A decoder that shows a letter for every token."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self._left = breaks_at

    def push(self, token_id: int) -> str:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise ValueError("this decoder is broken")
        return chr(97 + token_id) if token_id < 26 else f"<{token_id}>"


@dataclass
class Asked:
    """A request of a test, and what came of it."""

    prompt: list[int]
    params: SamplingParams = GREEDY
    arrives: int = 0
    cancelled_after: int | None = None
    guesses: bool = True
    lookup: PromptLookup | None = None
    breaks_at: int | None = None
    items: list[StreamItem] = field(default_factory=list)
    ends: int = 0

    @property
    def texts(self) -> list[str]:
        texts = [""] * (self.params.n or 1)
        for chunk in self.items:
            if isinstance(chunk, GenerationChunk):
                texts[chunk.index] += chunk.text
        return texts

    @property
    def error(self) -> LlmctlError | None:
        last = self.items[-1]
        return last if isinstance(last, LlmctlError) else None

    def expected(self) -> list[str]:
        return [self._expected(index) for index in range(self.params.n or 1)]

    def _expected(self, index: int) -> str:
        """The reply as one would write it who has the model for himself."""
        sampler = SequenceSampler(self._full, self.prompt, index, end_ids=(END,))
        ids, text, decoder = list(self.prompt), "", Letters()
        for _ in range(self._full.max_new_tokens or 0):
            ids += sample(fake_logits(ids)[None], [sampler])
            sampler.remember(ids[-1])
            if ids[-1] == END:
                break
            text += decoder.push(ids[-1])
        return text

    @property
    def _full(self) -> SamplingParams:
        return self.params.with_defaults(DEFAULT_SAMPLING)

    def submit(self, scheduler: Scheduler) -> GenerationStream:
        stream = GenerationStream("request")
        stream.on_end(self._count_end)
        stream.listen(self.items.append)
        job = RequestState(self.prompt, stream)
        for index in range(self.params.n or 1):
            row = OutputState(
                index,
                self.prompt,
                self._full,
                self._full.max_new_tokens or 0,
                (END,),
                Letters(self.breaks_at),
                job.emit,
            )
            job.rows.append(row)
            sampler = SequenceSampler(self._full, self.prompt, index, end_ids=(END,))
            lookup = self.lookup
            if lookup is None and self.guesses and sampler.plain_greedy:
                lookup = PromptLookup()
            scheduler.add(RowSequence(job, row, sampler, lookup=lookup))
        return stream

    def _count_end(self, _: GenerationStream) -> None:
        self.ends += 1


def run_all(scheduler: Scheduler, pool: KVPool, requests: Sequence[Asked], rows: int = 16) -> int:
    """Let every request arrive and leave at its step; return how many steps it took."""
    coming, leaving = list(requests), []
    for step in range(5000):
        for asked in [a for a in coming if a.arrives <= step]:
            coming.remove(asked)
            stream = asked.submit(scheduler)
            if asked.cancelled_after is not None:
                leaving.append((step + asked.cancelled_after, stream))
        for _, stream in [(at, s) for at, s in leaving if at <= step]:
            stream.cancel()
        if not coming and not scheduler.busy:
            break
        scheduler.step()
        assert scheduler.running_count <= rows
        assert pool.used_tokens <= pool.budget_tokens
    else:
        pytest.fail("somebody waits for ever")
    for asked in requests:
        assert asked.ends == 1
        ends = [not isinstance(item, GenerationChunk) for item in asked.items]
        assert ends == [False] * (len(ends) - 1) + [True]
    assert pool.active_count == 0
    assert pool.used_tokens == pool.idle_tokens
    pool.clear()
    assert pool.used_tokens == 0
    return step


def setting(budget: int = 20_000, rows: int = 16, largest_batch: int = 100) -> Any:
    pool = KVPool(SHAPE, budget)
    forward = FakeForward(pool, largest_batch)
    return Scheduler(forward, pool, rows, TokenBytes(byte_tokenizer())), pool, forward


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    head = [draw(st.integers(0, 2))] * draw(st.sampled_from([0, 3, 40, 100, 300, 700]))
    tail = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    if draw(st.integers(0, 9)) == 0:
        tail.insert(draw(st.integers(0, len(tail))), POISON)
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
    return Asked(
        head + tail,
        SamplingParams(max_new_tokens=draw(st.sampled_from([1, 2, 7, 40])), **sampling),
        arrives=draw(st.integers(0, 25)),
        cancelled_after=draw(st.sampled_from([None, None, None, 0, 1, 5, 20])),
        guesses=draw(st.booleans()),
        breaks_at=draw(st.sampled_from([None] * 8 + [0, 3])),
    )


def assert_right(asked: Asked) -> None:
    expected = asked.expected()
    whole = all(text == wanted for text, wanted in zip(asked.texts, expected, strict=True))
    if POISON in asked.prompt:
        assert isinstance(asked.error, EngineFailedError) or asked.cancelled_after is not None
        assert not any(asked.texts)
    elif asked.breaks_at is not None and max(map(len, expected)) > asked.breaks_at:
        assert isinstance(asked.error, EngineFailedError) or asked.cancelled_after is not None
    elif asked.cancelled_after is None:
        assert asked.error is None
        assert whole, (asked.texts, expected)
        usage = [c.usage for c in asked.items if isinstance(c, GenerationChunk) and c.usage]
        assert [u.prompt_tokens for u in usage] == [len(asked.prompt)]
    for text, wanted in zip(asked.texts, expected, strict=True):
        assert wanted.startswith(text)


@given(
    st.lists(asked(), min_size=1, max_size=12),
    st.integers(0, 600),
    st.sampled_from([1, 2, 3, 16]),
    st.sampled_from([1, 2, 100]),
)
@settings(max_examples=120, deadline=None)
def test_every_request_ends_once_with_its_own_text_whatever_happens_beside_it(
    requests: list[Asked], spare: int, rows: int, largest_batch: int
) -> None:
    # Room for the greatest request alone, and little more.
    most = max(len(a.prompt) + (a.params.max_new_tokens or 0) for a in requests)
    scheduler, pool, _ = setting(most + spare, rows, largest_batch)
    run_all(scheduler, pool, requests, rows)
    for asked in requests:
        assert_right(asked)


def test_a_request_that_the_whole_budget_cannot_hold_fails_alone() -> None:
    scheduler, pool, _ = setting(budget=200)
    large, grows, small = (
        Asked([1] * 300),
        Asked([2] * 195, endless(50)),
        Asked([3] * 20, arrives=2),
    )
    run_all(scheduler, pool, [large, grows, small])
    assert isinstance(large.error, OutOfMemoryError)
    assert isinstance(grows.error, OutOfMemoryError)
    assert grows.expected()[0].startswith(grows.texts[0])
    assert_right(small)


def test_who_finds_the_room_held_by_a_score_waits_for_it() -> None:
    scheduler, pool, _ = setting(budget=200)
    scoring = pool.open([1, 2], None, 150)
    assert scoring is not None
    asked = Asked([3] * 100)
    asked.submit(scheduler)
    for _ in range(3):
        scheduler.step()
    assert asked.items == []
    pool.release(scoring)
    while scheduler.busy:
        scheduler.step()
    assert_right(asked)


class WrongGuesses(PromptLookup):
    """Guesses as much as it may, and never well."""

    def guess(self, token_ids: Sequence[int]) -> list[int]:  # noqa: ARG002
        return [POISON - 1] * DRAFT_TOKENS


def test_a_guess_that_finds_no_room_sends_nobody_back_to_wait() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=40)
    prompts = ([first] + [1, 2, 3, 4] * 30 for first in range(500))
    # Replies that end just before the room is used up which a guess would need.
    fits = [a for p in prompts if len((a := Asked(p, params)).expected()[0]) in (4, 5)][:2]
    for asked in fits:
        asked.lookup = WrongGuesses()
    scheduler, pool, forward = setting(budget=256)
    run_all(scheduler, pool, fits)
    for asked in fits:
        assert_right(asked)
    # No prompt is computed twice; of guesses at most all are wrong.
    assert forward.computed <= 2 * 121 + 2 * 6 * (1 + DRAFT_TOKENS)


@pytest.mark.parametrize("choices", [1, 4])
def test_a_head_that_many_share_is_computed_once(choices: int) -> None:
    scheduler, pool, forward = setting()
    head = [1, 2, 3, 4] * 75
    params = SamplingParams(temperature=0, max_new_tokens=5, n=choices)
    requests = [Asked([*head, i, i, 9 - i], params, guesses=False) for i in range(6)]
    run_all(scheduler, pool, requests)
    for asked in requests:
        assert_right(asked)
    assert forward.computed <= len(head) + 6 * choices * (3 + 4)
    assert sum(u.cached_tokens >= len(head) for u in map(usage, requests)) == 5


def usage(asked: Asked) -> Any:
    return next(c.usage for c in asked.items if isinstance(c, GenerationChunk) and c.usage)


def test_running_replies_go_on_while_a_long_prompt_is_read() -> None:
    scheduler, _, _ = setting()
    short = Asked([1, 2], endless(60))
    for asked in (Asked([3] * 1500), short):
        asked.submit(scheduler)
    lengths = [0]
    while scheduler.busy:
        scheduler.step()
        lengths.append(len(short.texts[0]))
    assert lengths[lengths.index(1) :][:60] == list(range(1, 61))


@pytest.mark.parametrize("kind", ["score", "embed"])
def test_texts_without_a_reply_are_read_in_small_steps_while_replies_are_written(kind: str) -> None:
    scheduler, _, forward = setting()
    ids = [1] * 1500
    steps = scheduler.score([(ids, 9)], None) if kind == "score" else scheduler.embed(ids, None)
    sizes = []
    stream = Asked([1, 2, 3], endless(50)).submit(scheduler)
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


def test_guessing_saves_steps_where_a_text_repeats_itself() -> None:
    prompt = [1, 2, 3, 4, 5]
    steps = []
    for guesses in (False, True):
        params = SamplingParams(temperature=0, max_new_tokens=300)
        asked = Asked(prompt, params, guesses=guesses)
        scheduler, pool, _ = setting()
        steps.append(run_all(scheduler, pool, [asked]))
        assert_right(asked)
    assert steps[1] <= steps[0]


def test_the_youngest_gives_way_and_the_oldest_never_does() -> None:
    scheduler, _, forward = setting(budget=300)
    requests = [Asked([i] * 60, endless(150)) for i in range(4)]
    ended: list[int] = []
    for asked in requests:
        asked.submit(scheduler)
    while scheduler.busy:
        scheduler.step()
        ended += [i for i, a in enumerate(requests) if a.ends and i not in ended]
    assert [a.texts for a in requests] == [a.expected() for a in requests]
    assert ended == [0, 1, 2, 3]
    assert forward.computed > 4 * 60 + 4 * 149


Kind = Literal["fused", "batched"]


def real_setting(folder: Path, kind: Kind, budget: int) -> tuple[Scheduler, KVPool]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shape = kv_shape(model)
    assert shape is not None
    forward: Forward = FusedForward(model) if kind == "fused" else PackedForward(model)
    pool = KVPool(shape, budget)
    return Scheduler(forward, pool, 16, TokenBytes(byte_tokenizer())), pool


@pytest.fixture(scope="module")
def long_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "tiny"
    return save_tiny_model(folder, max_position_embeddings=2048)


@pytest.mark.parametrize("kind", ["fused", "batched"])
def test_a_model_writes_the_same_in_a_crowd_without_room_as_alone(
    long_tiny: Path, kind: Kind
) -> None:
    def requests() -> list[Asked]:
        params = SamplingParams(temperature=0, max_new_tokens=16)
        heads = [[5, 6, 7, 8] * n for n in (1, 30, 200)]
        prompts = [[*heads[i % 3], 20 + i, *range(i)] for i in range(8)]
        return [Asked(p, params, arrives=3 * i) for i, p in enumerate(prompts)]

    together = requests()
    run_all(*real_setting(long_tiny, kind, 900), together)
    scheduler, pool = real_setting(long_tiny, kind, 20_000)
    for asked, alone in zip(together, requests(), strict=True):
        pool.clear()
        alone.guesses = False
        run_all(scheduler, pool, [alone])
        assert asked.error is None
        assert asked.texts == alone.texts


def test_memory_that_ends_leaves_fewer_rows_and_every_reply_right() -> None:
    scheduler, pool, forward = setting(budget=20_000, largest_batch=3)
    requests = [Asked([i + 1] * 40, endless(30)) for i in range(8)]
    run_all(scheduler, pool, requests)
    for asked in requests:
        assert_right(asked)
    failed = forward.steps
    again = [Asked([i + 1] * 50, endless(10)) for i in range(6)]
    run_all(scheduler, pool, again)
    # Three rows at a time from now on: no step fails any more, so none is done twice.
    assert forward.steps - failed <= 2 * (10 + 2)


def test_a_row_that_alone_is_too_much_fails_alone_and_less_is_held_from_now_on() -> None:
    scheduler, pool, _ = setting(budget=4000, largest_batch=0)
    asked = Asked([1] * 2000)
    run_all(scheduler, pool, [asked])
    assert isinstance(asked.error, OutOfMemoryError)
    assert 1000 <= pool.budget_tokens < 4000
