"""Log-likelihoods of continuations: what they share is computed once, the rest side by side."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmctl.engine.batching.forward.packed import PREFILL_CHUNK_TOKENS, BatchItem, Forward
from llmctl.engine.batching.kv import KVCache, KVPool, common_prefix
from llmctl.engine.batching.sampling.logprobs import TokenBytes, token_logprobs
from llmctl.types import Score, TokenLogprob

TokenizedContinuation = tuple[list[int], int]
"""Token ids of a context with its continuation, and how many of them are the continuation."""


_ROWS_AT_ONCE = 16


class LogprobsFn(Protocol):
    """Says more of the tokens of a continuation than what they add up to."""

    def __call__(self, logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """Describe `targets` under `logits` (targets, vocab)."""


def no_token_logprobs(logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:  # noqa: ARG001
    """Be a `LogprobsFn` for those who want sums alone."""
    return ()


def top_token_logprobs(texts: TokenBytes, top: int) -> LogprobsFn:
    """Return what describes each token, with the `top` likeliest in its place."""

    def describe(logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        described = token_logprobs(logits, targets, [top] * len(targets), texts)
        return tuple(entry for entry in described if entry is not None)

    return describe


def prefill_chunk_tokens() -> int:
    """Say how much may be read at once where nothing else is done."""
    return PREFILL_CHUNK_TOKENS


def score_steps(
    forward: Forward,
    pool: KVPool,
    pairs: Sequence[TokenizedContinuation],
    adapter: str | None,
    describe: LogprobsFn = no_token_logprobs,
    chunk: Callable[[], int] = prefill_chunk_tokens,
) -> Generator[None, None, tuple[Score, ...]]:
    """Score the continuations of one context; yields between forward passes.

    What all texts begin with is read once, whether it counts or not. The cache keeps it afterwards,
    so the next question of the same exam finds its few-shot examples computed.

    Args:
        chunk: says how many tokens may be read at once now, at most `PREFILL_CHUNK_TOKENS`. The
            last of what is shared is read with the first endings, a chunk of each.

    Raises:
        MemoryError: the cache has no room even when nothing else runs.
    """
    fork = min(len(ids) for ids, _ in pairs) - 1
    for ids, _ in pairs[1:]:
        fork = min(fork, common_prefix(pairs[0][0], ids))
    text, first = pairs[0][0], min(len(ids) - tail for ids, tail in pairs)
    # Nobody reads a text's last token: texts that differ there alone have the same ending.
    ends = dict.fromkeys(tuple(ids[fork:-1]) for ids, _ in pairs)
    room = fork + max(sum(map(len, endings)) for endings in _passes(ends, prefill_chunk_tokens))
    cache = yield from open_cache(pool, text[: min(first, fork + 1)], adapter, room)
    try:
        trunk = _ContinuationLogprobs(describe)
        shared = text[:fork]
        while fork - cache.length > chunk():
            _read(forward, cache, shared, chunk(), first, trunk)
            yield
        scores: dict[int, Score] = {}
        for endings in _passes(ends, chunk):
            if len(endings[0]) > chunk():
                readings = {endings[0]: trunk.copy()}
                whole = [*shared, *endings[0]]
                while cache.length < len(whole):
                    _read(forward, cache, whole, chunk(), first, readings[endings[0]])
                    yield
                cache.truncate(fork)
            else:
                readings = _side_by_side(forward, cache, shared, endings, first, trunk)
            for at, (ids, tail) in enumerate(pairs):
                reading = readings.get(tuple(ids[fork:-1]))
                if reading is not None:
                    scores[at] = reading.score(len(ids) - tail - first, tail, ids[-1])
            readings.clear()
            yield
        return tuple(scores[at] for at in range(len(pairs)))
    finally:
        pool.release(cache)


def _passes(
    endings: Iterable[tuple[int, ...]], chunk: Callable[[], int]
) -> Iterator[list[tuple[int, ...]]]:
    """Divide endings into those that are read side by side; a long one comes last, by itself."""
    left = deque(sorted(endings, key=len))
    if len(left[0]) > chunk():
        yield [()]  # what is common to all is read in any case
    while left:
        some = [left.popleft()]
        room = chunk() - len(some[0])
        while left and len(left[0]) <= room:
            some.append(left.popleft())
            room -= len(some[-1])
        yield some


def open_cache(
    pool: KVPool, ids: list[int], adapter: str | None, room: int
) -> Generator[None, None, KVCache]:
    """Get a cache as `KVPool.open` does, waiting for room as long as anybody may make some."""
    while (cache := pool.open(ids, adapter, room)) is None:
        if not pool.active_count:
            raise MemoryError("the KV cache has no room for this text")
        yield
    return cache


class _ContinuationLogprobs:
    """How likely each token of a text is after all before it, from the first that counts on."""

    def __init__(self, describe: LogprobsFn) -> None:
        self._describe = describe
        self._logprobs: list[float] = []
        self._greedy: list[bool] = []
        self._tokens: tuple[TokenLogprob, ...] = ()
        self._next: Tensor | None = None
        """Logits (1, vocab) for whatever comes next."""

    def copy(self) -> "_ContinuationLogprobs":
        """Return a reading that goes on from here without this one."""
        twin = _ContinuationLogprobs(self._describe)
        twin._logprobs, twin._greedy = [*self._logprobs], [*self._greedy]
        twin._tokens, twin._next = self._tokens, self._next
        return twin

    def take(self, ids: Sequence[int], logits: Tensor) -> None:
        """Take the next tokens, with logits (n, vocab) of the last n of them: all, once it counts.

        Each row of logits is about the token after.
        """
        if not len(logits):
            return
        if self._next is not None:
            self._add(self._next, ids[:1])
        if len(logits) > 1:
            self._add(logits[:-1], ids[1 - len(logits) :])
        self._next = logits[-1:].clone()  # not a view, which would hold all of them

    def _add(self, logits: Tensor, targets: Sequence[int]) -> None:
        logprobs, greedy = target_logprobs(logits, targets)
        self._logprobs += logprobs
        self._greedy += greedy
        self._tokens += self._describe(logits, targets)

    def score(self, skipped: int, count: int, last: int) -> Score:
        """Score the text that ends with `last`, but for its first `skipped` tokens that count."""
        assert self._next is not None
        logprobs, greedy = target_logprobs(self._next, [last])
        return Score(
            sum(self._logprobs[skipped:]) + logprobs[0],
            count,
            all(self._greedy[skipped:]) and greedy[0],
            self._tokens[skipped:] + self._describe(self._next, [last]),
        )


def _read(
    forward: Forward,
    cache: KVCache,
    ids: Sequence[int],
    most: int,
    first: int,
    reading: _ContinuationLogprobs,
) -> None:
    """Read a text on from what the cache holds, by `most` tokens."""
    start = cache.length
    new = ids[start : start + most]
    wanted = tuple(range(max(first - 1 - start, 0), len(new)))
    reading.take(new, forward.run([BatchItem(cache, new, wanted)]))


def _side_by_side(
    forward: Forward,
    cache: KVCache,
    shared: list[int],
    endings: Sequence[tuple[int, ...]],
    first: int,
    trunk: _ContinuationLogprobs,
) -> dict[tuple[int, ...], _ContinuationLogprobs]:
    """Read what is left of the shared beginning, and endings after it, in one step."""
    fork, start = len(shared), cache.length
    new, ends = shared[start:], [ending for ending in endings if ending]
    wanted = [*range(max(first - 1 - start, 0), len(new))]
    counts = [len(wanted)]
    for ending in ends:
        unread = min(max(first - 1 - fork, 0), len(ending))
        wanted += range(len(new) + unread, len(new) + len(ending))
        counts.append(len(ending) - unread)
        new = [*new, *ending]
    readings: dict[tuple[int, ...], _ContinuationLogprobs] = {(): trunk}
    if not new:
        return readings
    work = BatchItem(cache, new, tuple(wanted), branches=tuple(map(len, ends)))
    own, *parts = forward.run([work]).split(counts)
    trunk.take(shared[start:], own)
    for ending, part in zip(ends, parts, strict=True):
        readings[ending] = trunk.copy()
        readings[ending].take(ending, part)
    return readings


def target_logprobs(logits: Tensor, targets: Sequence[int]) -> tuple[list[float], list[bool]]:
    """Return the log-probability of each target under its row of logits (targets, vocab).

    And whether it is as likely as the likeliest. Computed in float32.
    """
    wanted = torch.tensor(targets, device=logits.device).unsqueeze(1)
    chosen, greedy = [], []
    # A few rows at a time stay in the processor's caches: ten times as fast as all at once.
    rows = _ROWS_AT_ONCE if logits.device.type == "cpu" else len(targets)
    for some, ids in zip(logits.split(rows), wanted.split(rows), strict=True):
        logprobs = some.float().log_softmax(-1)
        chosen.append(logprobs.gather(1, ids).squeeze(1))
        greedy.append(chosen[-1] == logprobs.amax(-1))
    return torch.cat(chosen).tolist(), torch.cat(greedy).tolist()
