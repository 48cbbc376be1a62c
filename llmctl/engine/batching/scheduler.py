"""Continuous batching: selects the sequences of each forward pass and samples their next tokens.

Sequences join and leave between steps. A step computes one token of every decoding sequence and a
bounded chunk of the prompts in prefill, so that decoding never stalls for longer than about one
chunk.
"""

import logging
from collections import deque
from collections.abc import Generator, Sequence

from torch import Tensor

from llmctl.engine.batching.embedding import embed_steps
from llmctl.engine.batching.forward.lora import LoraAdapter
from llmctl.engine.batching.forward.packed import PREFILL_CHUNK_TOKENS, BatchItem, Forward
from llmctl.engine.batching.kv_cache import common_prefix_length
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.sampling.logprobs import TokenBytes, token_logprobs
from llmctl.engine.batching.sampling.sampler import sample
from llmctl.engine.batching.scoring import (
    LogprobsFn,
    TokenizedContinuation,
    no_token_logprobs,
    score_steps,
)
from llmctl.engine.batching.sequence import ScheduledSequence
from llmctl.engine.error_translation import is_out_of_memory, translate_error
from llmctl.types import EngineState, Score, TokenLogprob

_log = logging.getLogger(__name__)

MIXED_CHUNK_TOKENS = 128
"""Prefill tokens per step while other sequences decode."""
SPECULATION_MAX_ROWS = 2
"""Running sequences up to which drafts are made. With few rows a step takes as long as reading the
weights, and a few more tokens cost little."""
_MIN_SHARED_TOKENS = 32
"""Prompt tokens in common from which a request waits until another has computed them."""


class Scheduler:
    """Runs sequences on one thread; the caller repeats `step` while `busy`.

    Args:
        forward: runs the model.
        pool: the KV caches, a hard limit. A sequence that finds no space waits. When running
            sequences need more than there is, the youngest is preempted and computed again later.
        max_rows: sequences that run at the same time.
        token_bytes: bytes of each token, for log-probabilities.
    """

    def __init__(
        self, forward: Forward, pool: KVPool, max_rows: int, token_bytes: TokenBytes
    ) -> None:
        self._forward = forward
        self._pool = pool
        self._max_rows = max_rows
        self._token_bytes = token_bytes
        self._waiting: deque[ScheduledSequence] = deque()
        self._running: list[ScheduledSequence] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def state(self) -> EngineState:
        """Count running and waiting sequences and tokens in the KV cache. Thread-safe."""
        return EngineState(
            alive=True,
            last_step_age_s=0.0,
            running=len(self._running),
            waiting=len(self._waiting),
            max_rows=self._max_rows,
            kv_used_tokens=self._pool.used_tokens,
            kv_budget_tokens=self._pool.budget_tokens,
        )

    def add(self, sequence: ScheduledSequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def step(self) -> None:
        """Run one forward pass, or none if every sequence was cancelled."""
        self._drop_cancelled()
        self._admit()
        batch = self._schedule()
        if not batch:
            return
        lengths = [item.cache.length for _, item in batch]
        try:
            logits = self._forward.run([item for _, item in batch])
        except Exception as error:
            # It may have failed at the logits, after the new tokens were added to the caches.
            for (_, item), length in zip(batch, lengths, strict=True):
                item.cache.truncate(length)
            self._isolate_failure(batch, error)
            return
        self._process_logits(batch, logits)

    def _process_logits(
        self, batch: list[tuple[ScheduledSequence, BatchItem]], logits: Tensor
    ) -> None:
        """Give each sequence its rows of `logits` (requested, vocab), in batch order."""
        single = [sequence for sequence, item in batch if len(item.logit_indices) == 1]
        if sum(len(item.logit_indices) for _, item in batch) == len(single):
            self._sample(single, logits)
            return
        parts = logits.split([len(item.logit_indices) for _, item in batch])
        for (sequence, item), part in zip(batch, parts, strict=True):
            if len(item.logit_indices) > 1:
                self._verify_draft(sequence, item.token_ids[1:], part)
            elif item.logit_indices:
                self._sample([sequence], part)

    def score(
        self,
        continuations: Sequence[TokenizedContinuation],
        adapter: str | None,
        describe: LogprobsFn = no_token_logprobs,
    ) -> Generator[None, None, tuple[Score, ...]]:
        """Score the continuations of one context; yields between forward passes."""
        return score_steps(
            self._forward, self._pool, continuations, adapter, describe, self._chunk_tokens
        )

    def embed(
        self, ids: Sequence[int], adapter: str | None
    ) -> Generator[None, None, tuple[float, ...]]:
        """Embed a text; yields between forward passes."""
        return embed_steps(self._forward, self._pool, ids, adapter, self._chunk_tokens)

    def _chunk_tokens(self) -> int:
        """Return the tokens to score or embed before the next decoding step."""
        return MIXED_CHUNK_TOKENS if self._running else PREFILL_CHUNK_TOKENS

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter, for sequences that name its key."""
        self._forward.put_adapter(key, adapter)

    def drop_adapter(self, key: str) -> bool:
        """Remove an adapter and its caches unless a sequence uses it; return whether it did."""
        if any(sequence.adapter == key for sequence in [*self._running, *self._waiting]):
            return False
        self._forward.drop_adapter(key)
        self._pool.drop_adapter(key)
        return True

    def fail_all(self, error: BaseException) -> None:
        """End every sequence with an error."""
        for sequence in [*self._running, *self._waiting]:
            self._fail(sequence, error)
        self._waiting.clear()

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self._running if s.request.stream.cancelled]:
            self._remove(sequence)
            sequence.request.stream.finish()
        for sequence in [s for s in self._waiting if s.request.stream.cancelled]:
            self._waiting.remove(sequence)
            sequence.request.stream.finish()

    def _admit(self) -> None:
        """Start waiting sequences in order, while there are free rows and cache space."""
        for sequence in list(self._waiting):
            if len(self._running) >= self._max_rows:
                return
            token_ids = sequence.token_ids
            if self._should_wait_for_prefix(token_ids, sequence.adapter):
                continue
            cache = self._pool.acquire(token_ids, sequence.adapter, len(token_ids) + 1)
            if cache is None:
                if self._pool.active_count:
                    return
                # Nothing runs that could free space: the whole budget is too small for it.
                self._waiting.remove(sequence)
                self._fail(sequence, MemoryError("the KV cache is too small for this prompt"))
                continue
            self._waiting.remove(sequence)
            if not sequence.started and sequence.output.index == 0:
                sequence.request.cached_tokens = cache.length
            sequence.started = True
            sequence.cache = cache
            self._running.append(sequence)

    def _should_wait_for_prefix(self, token_ids: list[int], adapter: str | None) -> bool:
        """Whether a running prefill will soon have computed more of this prompt than is cached."""
        cached = self._pool.cached_prefix_length(token_ids, adapter)
        for running in self._running:
            if running.adapter != adapter or running.pending <= 1 or running.cache is None:
                continue
            coming = common_prefix_length(running.output.prompt_ids, token_ids)
            if coming < max(cached, 0) + _MIN_SHARED_TOKENS:
                continue
            if running.cache.can_truncate:
                return True
            if running.cache.length < coming:
                running.cache.keep_state(coming)
                return True
        return False

    def _schedule(self) -> list[tuple[ScheduledSequence, BatchItem]]:
        """Build the next batch: every decoding sequence, then prompts up to the chunk.

        Sequences of one adapter are adjacent.
        """
        batch: list[tuple[ScheduledSequence, BatchItem]] = []
        decoding = [s for s in self._running if s.pending == 1]
        budget = MIXED_CHUNK_TOKENS if decoding else PREFILL_CHUNK_TOKENS
        for sequence in decoding:
            if sequence.cache is None or not self._reserve_next_token(sequence):
                continue  # it was preempted, for its own next token or that of an older sequence
            draft = sequence.draft() if len(self._running) <= SPECULATION_MAX_ROWS else []
            # No sequence is preempted for a draft.
            if not self._pool.reserve(sequence.cache, sequence.cache.length + 1 + len(draft)):
                draft = []
            ids = sequence.next_ids(1) + draft
            indices = tuple(range(len(ids))) if draft else (-1,)
            batch.append((sequence, BatchItem(sequence.cache, ids, indices)))
        for sequence in self._running:
            if sequence.cache is None or sequence.pending == 1 or budget <= 0:
                continue
            ids = sequence.next_ids(sequence.cache.step_limit(budget, sequence.pending))
            budget -= len(ids)
            indices = (-1,) if len(ids) == sequence.pending else ()
            batch.append((sequence, BatchItem(sequence.cache, ids, indices)))
        # A sequence may have been preempted after it was put into the batch.
        kept = [(s, item) for s, item in batch if s.cache is item.cache]
        return sorted(kept, key=lambda pair: pair[0].adapter or "")

    def _reserve_next_token(self, sequence: ScheduledSequence) -> bool:
        """Reserve cache space for one more token, preempting the youngest sequences if needed.

        Returns:
            False if the sequence itself was preempted.
        """
        assert sequence.cache is not None
        while not self._pool.reserve(sequence.cache, sequence.cache.length + 1):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _sample(self, sequences: list[ScheduledSequence], logits: Tensor) -> None:
        """Sample the next token of each sequence from `logits` (sequences, vocab)."""
        if not sequences:
            return
        samplers = [s.sampler for s in sequences]
        try:
            token_ids = sample(logits, samplers)
            entries = token_logprobs(
                logits, token_ids, [s.logprobs for s in samplers], self._token_bytes
            )
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences[0], error)
                return
            for index, sequence in enumerate(sequences):
                self._sample([sequence], logits[index : index + 1])
            return
        for sequence, token_id, entry in zip(sequences, token_ids, entries, strict=True):
            self._append_token(sequence, token_id, entry)

    def _append_token(
        self, sequence: ScheduledSequence, token_id: int, entry: TokenLogprob | None
    ) -> None:
        try:
            sequence.sampler.record(token_id)
            sequence.output.accept(token_id, entry)
        except Exception as error:
            self._fail(sequence, error)
            return
        if sequence.output.finish_reason is None and sequence.sampler.complete:
            sequence.output.end()
        if sequence.output.finish_reason is not None:
            self._remove(sequence)

    def _verify_draft(
        self, sequence: ScheduledSequence, draft: Sequence[int], logits: Tensor
    ) -> None:
        """Keep the draft tokens that greedy decoding also gives, and the token after them.

        Args:
            draft: the proposed tokens.
            logits: (draft + 1, vocab).
        """
        assert sequence.cache is not None
        assert sequence.lookup is not None
        cache, accepted = sequence.cache, 0
        # Keys and values stay in the buffers; the loop adds the tokens that were right.
        cache.truncate(cache.length - len(draft))
        for token_id, drafted in zip(logits.argmax(-1).tolist(), [*draft, None], strict=True):
            self._append_token(sequence, token_id, None)
            if sequence.cache is None or token_id != drafted:
                break  # it has ended, or the rest was computed after a wrong token
            cache.token_ids.append(token_id)
            accepted += 1
        sequence.lookup.record_result(accepted, sequence.length)

    def _isolate_failure(
        self, batch: list[tuple[ScheduledSequence, BatchItem]], error: Exception
    ) -> None:
        """Run each sequence of a failed step alone, so that only those at fault fail."""
        if is_out_of_memory(error):
            self._lower_limits(alone=len(batch) == 1)
        if len(batch) == 1:
            sequence, _ = batch[0]
            _log.error("request %s failed", sequence.request.stream.request_id, exc_info=error)
            self._fail(sequence, error)
            return
        for sequence, item in batch:
            # Preempted, or without its state, which is computed again from the last saved one.
            if sequence.cache is not item.cache or sequence.pending > len(item.token_ids):
                continue
            try:
                logits = self._forward.run([item])
            except Exception as own:
                self._isolate_failure([(sequence, item)], own)
            else:
                self._process_logits([(sequence, item)], logits)

    def _lower_limits(self, *, alone: bool) -> None:
        """After running out of memory, run fewer rows or, if one row failed, use less cache."""
        if alone:
            self._pool.shrink_budget()
            return
        self._pool.clear()
        self._max_rows = max(1, len(self._running) - 1)
        _log.warning("out of memory: at most %d rows run from now on", self._max_rows)
        while len(self._running) > self._max_rows:
            self._preempt(self._running[-1])

    def _preempt(self, sequence: ScheduledSequence) -> None:
        """Discard the cache of a running sequence and put it first in the queue."""
        self._remove(sequence, discard=True)
        self._waiting.appendleft(sequence)

    def _fail(self, sequence: ScheduledSequence, error: BaseException) -> None:
        """End a whole request with an error; its other choices are dropped at the next step."""
        self._remove(sequence, discard=True)
        sequence.request.stream.fail(translate_error(error))
        sequence.request.stream.cancel()

    def _remove(self, sequence: ScheduledSequence, *, discard: bool = False) -> None:
        """Stop running a sequence; keep its cache for reuse, or discard it."""
        if sequence in self._running:
            self._running.remove(sequence)
        if sequence.cache is not None:
            self._pool.release(sequence.cache, discard=discard)
            sequence.cache = None
