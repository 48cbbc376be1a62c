"""The step loop: who runs in the next forward pass, and what becomes of its logits.

Rows join and leave between steps. A step takes one token of every decoding row and, beside them, a
bounded chunk of the prompts that are waiting to be read, so that running replies never stall for
longer than about one chunk.
"""

import logging
from collections import deque
from collections.abc import Generator
from collections.abc import Sequence as Sequence_

from torch import Tensor

from llmctl.engine.batching.embedding import embed_steps
from llmctl.engine.batching.forward.lora import LoraAdapter
from llmctl.engine.batching.forward.packed import PREFILL_CHUNK_TOKENS, BatchItem, Forward
from llmctl.engine.batching.kv import KVPool, common_prefix
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
"""Tokens that are read per step while replies are running."""
SPECULATION_MAX_ROWS = 2
"""Guessing pays while a step is bound by reading weights: with few rows."""
_WORTH_WAITING = 32
"""Prompt tokens that must be shared for a request to wait until another has computed them."""


class Scheduler:
    """Runs sequences on one thread; `step` is called while `busy`.

    Args:
        forward: the model.
        pool: the caches, as a hard limit: who finds no room waits, and when running rows need
            more than there is, the youngest gives its room up and is computed again later.
        max_rows: sequences that run at the same time.
    """

    def __init__(self, forward: Forward, pool: KVPool, max_rows: int, texts: TokenBytes) -> None:
        self._forward = forward
        self._pool = pool
        self._max_rows = max_rows
        self._texts = texts
        self._waiting: deque[ScheduledSequence] = deque()
        self._running: list[ScheduledSequence] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def state(self) -> EngineState:
        """Count what runs, waits and is held. Any thread may ask."""
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
        """Put a sequence in line."""
        self._waiting.append(sequence)

    def step(self) -> None:
        """Do one forward pass, or less if nobody is left who wants one."""
        self._drop_cancelled()
        self._admit()
        chosen = self._choose()
        if not chosen:
            return
        held = [item.cache.length for _, item in chosen]
        try:
            logits = self._forward.run([item for _, item in chosen])
        except Exception as error:
            # It may have failed at the logits, with the new tokens noted already.
            for (_, item), length in zip(chosen, held, strict=True):
                item.cache.truncate(length)
            self._fail_alone(chosen, error)
            return
        self._digest(chosen, logits)

    def _digest(self, chosen: list[tuple[ScheduledSequence, BatchItem]], logits: Tensor) -> None:
        """Hand each row its logits (wanted, vocab), in order."""
        plain = [sequence for sequence, item in chosen if len(item.logits) == 1]
        if sum(len(item.logits) for _, item in chosen) == len(plain):
            self._accept(plain, logits)
            return
        parts = logits.split([len(item.logits) for _, item in chosen])
        for (sequence, item), part in zip(chosen, parts, strict=True):
            if len(item.logits) > 1:
                self._accept_guess(sequence, item.token_ids[1:], part)
            elif item.logits:
                self._accept([sequence], part)

    def score(
        self,
        pairs: Sequence_[TokenizedContinuation],
        adapter: str | None,
        describe: LogprobsFn = no_token_logprobs,
    ) -> Generator[None, None, tuple[Score, ...]]:
        """Score the continuations of one context; yields between forward passes."""
        return score_steps(self._forward, self._pool, pairs, adapter, describe, self._chunk)

    def embed(
        self, ids: Sequence_[int], adapter: str | None
    ) -> Generator[None, None, tuple[float, ...]]:
        """Embed a text; yields between forward passes."""
        return embed_steps(self._forward, self._pool, ids, adapter, self._chunk)

    def _chunk(self) -> int:
        """Say how much may be read without a reply before replies have their next step."""
        return MIXED_CHUNK_TOKENS if self._running else PREFILL_CHUNK_TOKENS

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter, for sequences that name its key."""
        self._forward.put_adapter(key, adapter)

    def drop_adapter(self, key: str) -> bool:
        """Forget an adapter and its caches, unless a sequence needs it; return whether it went."""
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
        for sequence in [s for s in self._running if s.job.stream.cancelled]:
            self._retire(sequence)
            sequence.job.stream.finish()
        for sequence in [s for s in self._waiting if s.job.stream.cancelled]:
            self._waiting.remove(sequence)
            sequence.job.stream.finish()

    def _admit(self) -> None:
        """Give caches to those who wait, in their order, while there is room."""
        for sequence in list(self._waiting):
            if len(self._running) >= self._max_rows:
                return
            token_ids = sequence.token_ids
            if self._worth_waiting(token_ids, sequence.adapter):
                continue
            cache = self._pool.open(token_ids, sequence.adapter, len(token_ids) + 1)
            if cache is None:
                if self._pool.active_count:
                    return
                # Nobody will make room: the budget itself is too small for this sequence.
                self._waiting.remove(sequence)
                self._fail(sequence, MemoryError("the KV cache has no room for this prompt"))
                continue
            self._waiting.remove(sequence)
            if not sequence.admitted_before and sequence.row.index == 0:
                sequence.job.cached_tokens = cache.length
            sequence.admitted_before = True
            sequence.cache = cache
            self._running.append(sequence)

    def _worth_waiting(self, token_ids: list[int], adapter: str | None) -> bool:
        """Whether a running prefill will soon have computed more of this prompt than is held."""
        coming = max(
            (
                common_prefix(s.row.prompt_ids, token_ids)
                for s in self._running
                if s.adapter == adapter and s.pending > 1
            ),
            default=0,
        )
        if coming < _WORTH_WAITING:
            return False
        return coming >= self._pool.shared_prefix(token_ids, adapter) + _WORTH_WAITING

    def _choose(self) -> list[tuple[ScheduledSequence, BatchItem]]:
        """Lay out the next step: every decoding row, then prompts up to the chunk.

        Rows of one adapter lie next to each other.
        """
        chosen: list[tuple[ScheduledSequence, BatchItem]] = []
        decoding = [s for s in self._running if s.pending == 1]
        room = MIXED_CHUNK_TOKENS if decoding else PREFILL_CHUNK_TOKENS
        for sequence in decoding:
            if sequence.cache is None or not self._make_room(sequence):
                continue  # it has been sent back to wait, for itself or for an older one
            guess = self._guess(sequence) if len(self._running) <= SPECULATION_MAX_ROWS else []
            ids = sequence.next_ids(1) + guess
            wanted = tuple(range(len(ids))) if guess else (-1,)
            chosen.append((sequence, BatchItem(sequence.cache, ids, wanted)))
        for sequence in self._running:
            if sequence.cache is None or sequence.pending == 1 or room <= 0:
                continue
            ids = sequence.next_ids(room)
            room -= len(ids)
            logits = (-1,) if len(ids) == sequence.pending else ()
            chosen.append((sequence, BatchItem(sequence.cache, ids, logits)))
        # A row that made room may have been chosen before it lost its cache.
        kept = [(s, item) for s, item in chosen if s.cache is item.cache]
        return sorted(kept, key=lambda pair: pair[0].adapter or "")

    def _guess(self, sequence: ScheduledSequence) -> list[int]:
        if sequence.lookup is None or sequence.cache is None:
            return []
        row = sequence.row
        most = row.max_new_tokens - len(row.output_ids) - 1
        guess = sequence.lookup.guess(sequence.token_ids)[:most]
        # Nobody is sent back to wait for a mere guess.
        room = sequence.cache.length + 1 + len(guess)
        return guess if self._pool.reserve(sequence.cache, room) else []

    def _make_room(self, sequence: ScheduledSequence) -> bool:
        """Get room for one more token, at the cost of the youngest if need be."""
        assert sequence.cache is not None
        while not self._pool.reserve(sequence.cache, sequence.cache.length + 1):
            youngest = self._running[-1]
            self._send_back(youngest)
            if youngest is sequence:
                return False
        return True

    def _accept(self, sequences: list[ScheduledSequence], logits: Tensor) -> None:
        """Sample for every row; `logits` is (rows, vocab)."""
        if not sequences:
            return
        samplers = [s.sampler for s in sequences]
        try:
            chosen = sample(logits, samplers)
            described = token_logprobs(logits, chosen, [s.logprobs for s in samplers], self._texts)
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences[0], error)
                return
            for at, sequence in enumerate(sequences):
                self._accept([sequence], logits[at : at + 1])
            return
        for sequence, token_id, entry in zip(sequences, chosen, described, strict=True):
            self._take(sequence, token_id, entry)

    def _take(self, sequence: ScheduledSequence, token_id: int, entry: TokenLogprob | None) -> None:
        try:
            sequence.sampler.remember(token_id)
            sequence.row.accept(token_id, entry)
        except Exception as error:
            self._fail(sequence, error)
            return
        if sequence.row.finish_reason is None and sequence.sampler.complete:
            sequence.row.end()
        if sequence.row.finish_reason is not None:
            self._retire(sequence)

    def _accept_guess(
        self, sequence: ScheduledSequence, guess: Sequence_[int], logits: Tensor
    ) -> None:
        """Keep of a guess what the model says too, and the token that it says instead.

        Args:
            logits: (guessed + 1, vocab).
        """
        assert sequence.cache is not None
        assert sequence.lookup is not None
        cache, right = sequence.cache, 0
        # Keys and values stay where they are; which of them count is found out below.
        cache.truncate(cache.length - len(guess))
        for token_id, guessed in zip(logits.argmax(-1).tolist(), [*guess, None], strict=True):
            self._take(sequence, token_id, None)
            if sequence.cache is None or token_id != guessed:
                break  # it has ended, or what follows was computed after a wrong token
            cache.token_ids.append(token_id)
            right += 1
        row = sequence.row
        sequence.lookup.learn(right, len(row.prompt_ids) + len(row.output_ids))

    def _fail_alone(
        self, chosen: list[tuple[ScheduledSequence, BatchItem]], error: Exception
    ) -> None:
        """Find out whose fault a failed step was: everybody gets a step alone."""
        if is_out_of_memory(error):
            self._lower_limits(alone=len(chosen) == 1)
        if len(chosen) == 1:
            sequence, _ = chosen[0]
            _log.error("request %s failed", sequence.job.stream.request_id, exc_info=error)
            self._fail(sequence, error)
            return
        for sequence, item in chosen:
            if sequence.cache is not item.cache:
                continue  # it was sent back to wait
            try:
                logits = self._forward.run([item])
            except Exception as own:
                self._fail_alone([(sequence, item)], own)
            else:
                self._digest([(sequence, item)], logits)

    def _lower_limits(self, *, alone: bool) -> None:
        """Memory ran out: go on with fewer rows or, if one alone was too many, a smaller cache."""
        if alone:
            self._pool.tighten()
            return
        self._pool.clear()
        self._max_rows = max(1, len(self._running) - 1)
        _log.warning("memory ran out: from now on at most %d rows run", self._max_rows)
        while len(self._running) > self._max_rows:
            self._send_back(self._running[-1])

    def _send_back(self, sequence: ScheduledSequence) -> None:
        """Take a running sequence's room; it waits, first in line, and is computed again."""
        self._retire(sequence, forget=True)
        self._waiting.appendleft(sequence)

    def _fail(self, sequence: ScheduledSequence, error: BaseException) -> None:
        """End a whole request; its other choices go at the next step."""
        self._retire(sequence, forget=True)
        sequence.job.stream.fail(translate_error(error))
        sequence.job.stream.cancel()

    def _retire(self, sequence: ScheduledSequence, *, forget: bool = False) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        if sequence.cache is not None:
            self._pool.release(sequence.cache, forget=forget)
            sequence.cache = None
