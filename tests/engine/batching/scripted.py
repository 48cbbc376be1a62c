"""A fake forward pass and scripted requests for tests of the scheduler and the engine thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmctl.engine.batching.forward.packed import PREFILL_CHUNK_TOKENS, BatchItem
from llmctl.engine.batching.kv_cache import KVShape
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.sampling.sampler import SequenceSampler, sample
from llmctl.engine.batching.sampling.speculation import PromptLookup
from llmctl.engine.batching.scheduler import MIXED_CHUNK_TOKENS, Scheduler
from llmctl.engine.batching.sequence import OutputState, RequestState, ScheduledSequence
from llmctl.engine.stream import GenerationStream, StreamItem
from llmctl.errors import LlmctlError
from llmctl.types import DEFAULT_SAMPLING, GenerationChunk, SamplingParams
from tests.tiny import byte_tokenizer

SHAPE = KVShape.uniform(1, 1, 1, torch.float32, torch.device("cpu"))
VOCAB = 12
END, FAILING = 10, 11
GREEDY = SamplingParams(temperature=0, max_new_tokens=10)


_TOKEN_BYTES = TokenBytes(byte_tokenizer())


def exactly(tokens: int) -> SamplingParams:
    """Return parameters of a reply of exactly `tokens` tokens."""
    bias = ((END, -99.0),)
    return SamplingParams(temperature=1.0, seed=1, max_new_tokens=tokens, logit_bias=bias)


@cache
def _random_logits(key: tuple[int, ...]) -> Tensor:
    """Return random logits (vocab,), the same for the same key; not to be changed."""
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(hash(key) % 2**31))


def fake_logits(ids: Sequence[int]) -> Tensor:
    """Return logits (vocab,) that depend on the whole text, and make it repeat itself."""
    logits = _random_logits((*ids[:6], *ids[-2:])).clone()
    logits[END] = 10.0 if sum(ids) % 23 == 0 else -10.0
    logits[FAILING] = -100
    return logits


class Crash(BaseException):
    """An exception that `except Exception` does not catch."""


class FakeForward:
    """A model whose logits depend on the content of the caches; checks every batch.

    Args:
        pool: of the caches in the batches.
        largest_batch: sequences above which memory runs out.
        crash_at: number of the step that raises `Crash`, from 1.
    """

    def __init__(self, pool: KVPool, largest_batch: int = 100, crash_at: int | None = None) -> None:
        self.pool = pool
        self.computed = 0
        self.steps = 0
        self._largest_batch = largest_batch
        self._crash_at = crash_at

    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        self._check(batch)
        if any(FAILING in item.token_ids for item in batch):
            raise RuntimeError("a failing token")
        self.steps += 1
        if self.steps == self._crash_at:
            raise Crash
        parts = [torch.zeros(0, VOCAB)]
        for item in batch:
            past, count = item.cache.length, len(item.token_ids)
            buffer = item.cache.keys[0][0, 0, :, 0]
            assert buffer[:past].tolist() == item.cache.token_ids
            buffer[past : past + count] = torch.tensor(item.token_ids)
            self.computed += count
            for index in item.logit_indices:
                parts.append(fake_logits(buffer[: past + index % count + 1].int().tolist())[None])
            item.cache.token_ids.extend(item.token_ids)
        if len(batch) > self._largest_batch:
            # The logits are the largest tensor of a step, so memory often runs out there.
            raise MemoryError("too many rows")
        return torch.cat(parts)

    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        self.run(batch)
        return torch.zeros(sum(len(item.token_ids) for item in batch), 1)

    def put_adapter(self, *_: Any) -> None: ...

    def drop_adapter(self, *_: Any) -> None: ...

    def _check(self, batch: Sequence[BatchItem]) -> None:
        assert len({id(item.cache) for item in batch}) == len(batch)
        assert self.pool.used_tokens <= self.pool.budget_tokens
        for item in batch:
            assert item.cache.length + len(item.token_ids) <= item.cache.capacity
        decoding = [
            w for w in batch if w.logit_indices and len(w.token_ids) in (1, len(w.logit_indices))
        ]
        prompts = sum(len(w.token_ids) for w in batch if w not in decoding)
        assert prompts <= (MIXED_CHUNK_TOKENS if decoding else PREFILL_CHUNK_TOKENS)


class Letters:
    """A decoder with a letter for every token; `fails_at` is the token that it fails at."""

    def __init__(self, fails_at: int | None = None) -> None:
        self._left = fails_at

    def push(self, token_id: int) -> str:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise ValueError("the decoder failed")
        return chr(97 + token_id) if token_id < 26 else f"<{token_id}>"


@dataclass
class ScriptedRequest:
    """A request with its expected and actual output."""

    prompt: list[int]
    params: SamplingParams = GREEDY
    arrives: int = 0
    cancelled_after: int | None = None
    speculative: bool = True
    lookup: PromptLookup | None = None
    fails_at: int | None = None
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
        """Return the reply of the model to this request alone."""
        sampler = SequenceSampler(self._full, self.prompt, index, end_ids=(END,))
        ids, text, decoder = list(self.prompt), "", Letters()
        for _ in range(self._full.max_new_tokens or 0):
            ids += sample(fake_logits(ids)[None], [sampler])
            sampler.record(ids[-1])
            if ids[-1] == END:
                break
            text += decoder.push(ids[-1])
        return text

    @property
    def _full(self) -> SamplingParams:
        return self.params.with_defaults(DEFAULT_SAMPLING)

    def submit(self, scheduler: Scheduler) -> GenerationStream:
        """Put the request into a scheduler; return its stream."""
        sequences = self.sequences()
        for sequence in sequences:
            scheduler.add(sequence)
        return sequences[0].request.stream

    def sequences(self) -> list[ScheduledSequence]:
        """Return a sequence for each choice."""
        stream = GenerationStream("request")
        stream.on_end(self._count_end)
        stream.listen(self.items.append)
        state = RequestState(self.prompt, stream)
        sequences = []
        for index in range(self.params.n or 1):
            output = OutputState(
                index,
                self.prompt,
                self._full,
                self._full.max_new_tokens or 0,
                (END,),
                Letters(self.fails_at),
                state.emit,
            )
            state.outputs.append(output)
            sampler = SequenceSampler(self._full, self.prompt, index, end_ids=(END,))
            lookup = self.lookup
            if lookup is None and self.speculative and sampler.plain_greedy:
                lookup = PromptLookup()
            sequences.append(ScheduledSequence(state, output, sampler, lookup=lookup))
        return sequences

    def _count_end(self, _: GenerationStream) -> None:
        self.ends += 1


def make_scheduler(
    budget: int = 20_000,
    rows: int = 16,
    largest_batch: int = 100,
    crash_at: int | None = None,
) -> tuple[Scheduler, KVPool, FakeForward]:
    """Return a scheduler over a fake model, with its pool and its forward pass."""
    pool = KVPool(SHAPE, budget)
    forward = FakeForward(pool, largest_batch, crash_at)
    return Scheduler(forward, pool, rows, _TOKEN_BYTES), pool, forward
