"""Log-likelihoods of continuations: what they share is computed once, the rest side by side."""

from collections.abc import Generator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmctl.engine.batching.forward import IDLE_CHUNK, Forward, Work
from llmctl.engine.batching.kv import KVCache, KVPool, common_prefix
from llmctl.engine.batching.logprobs import TokenTexts, token_logprobs
from llmctl.types import Score, TokenLogprob

Pair = tuple[list[int], int]
"""Token ids of a context with its continuation, and how many of them are the continuation."""


_ROWS_AT_ONCE = 16


class Describe(Protocol):
    """Says more of the tokens of a continuation than what they add up to."""

    def __call__(self, logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """Describe `targets` under `logits` (targets, vocab)."""


def describe_nothing(logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:  # noqa: ARG001
    """Be a `Describe` for those who want sums alone."""
    return ()


def describe_tokens(texts: TokenTexts, top: int) -> Describe:
    """Return what describes each token, with the `top` likeliest in its place."""

    def describe(logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        described = token_logprobs(logits, targets, [top] * len(targets), texts)
        return tuple(entry for entry in described if entry is not None)

    return describe


def score_steps(
    forward: Forward,
    pool: KVPool,
    pairs: Sequence[Pair],
    adapter: str | None,
    describe: Describe = describe_nothing,
) -> Generator[None, None, tuple[Score, ...]]:
    """Score the continuations of one context; yields between forward passes.

    The cache keeps the context afterwards, so the next question of the same exam finds its
    few-shot examples computed.

    Raises:
        MemoryError: the cache has no room even when nothing else runs.
    """
    trunk = min(len(ids) - tail - 1 for ids, tail in pairs)
    for ids, _ in pairs[1:]:
        trunk = min(trunk, common_prefix(pairs[0][0], ids))
    # Continuations that differ in their last token alone, which nobody reads, are one ending.
    endings = list(dict.fromkeys((tuple(ids[trunk:-1]), tail) for ids, tail in pairs))
    size = sum(len(ending) for ending, _ in endings)
    if len(pairs) > 1 and size > IDLE_CHUNK:
        scores: list[Score] = []
        for pair in pairs:
            scores += yield from score_steps(forward, pool, [pair], adapter, describe)
        return tuple(scores)
    cache = yield from opened(pool, pairs[0][0][: trunk + 1], adapter, trunk + size)
    try:
        if len(pairs) == 1:
            return ((yield from _score_one(forward, cache, pairs[0], describe)),)
        while trunk - cache.length > IDLE_CHUNK:
            ids = pairs[0][0][cache.length : cache.length + IDLE_CHUNK]
            forward.run([Work(cache, ids, ())])
            yield
        shared = pairs[0][0][cache.length : trunk]
        return _score_branches(forward, cache, shared, pairs, endings, describe)
    finally:
        pool.release(cache)


def opened(
    pool: KVPool, ids: list[int], adapter: str | None, room: int
) -> Generator[None, None, KVCache]:
    """Get a cache as `KVPool.open` does, waiting for room as long as anybody may make some."""
    while (cache := pool.open(ids, adapter, room)) is None:
        if not pool.active_count:
            raise MemoryError("the KV cache has no room for this text")
        yield
    return cache


def _score_branches(
    forward: Forward,
    cache: KVCache,
    shared: list[int],
    pairs: Sequence[Pair],
    endings: Sequence[tuple[tuple[int, ...], int]],
    describe: Describe,
) -> tuple[Score, ...]:
    new = list(shared)
    wanted: list[int] = []
    for ending, tail in endings:
        new += ending
        wanted += range(len(new) - tail, len(new))
    lengths = tuple(len(ending) for ending, _ in endings)
    logits = forward.run([Work(cache, new, tuple(wanted), branches=lengths)])
    parts = dict(zip(endings, logits.split([tail for _, tail in endings]), strict=True))
    # What stands before the last token is the same for all that share an ending.
    begun = {
        (ending, tail): picked(part[:-1], ending[1 - tail :]) if tail > 1 else (0.0, True)
        for (ending, tail), part in parts.items()
    }
    trunk = cache.length
    scores = []
    for ids, tail in pairs:
        key = tuple(ids[trunk:-1]), tail
        part, (before, begins_greedy) = parts[key], begun[key]
        last, greedy = picked(part[-1:], ids[-1:])
        described = describe(part, ids[-tail:])
        scores.append(Score(before + last, tail, begins_greedy and greedy, described))
    return tuple(scores)


def _score_one(
    forward: Forward, cache: KVCache, pair: Pair, describe: Describe
) -> Generator[None, None, Score]:
    """Score a single continuation of any length, a chunk at a time."""
    ids, tail = pair
    first = len(ids) - 1 - tail  # the position whose logits predict the continuation's first token
    parts: list[tuple[float, bool]] = []
    tokens: tuple[TokenLogprob, ...] = ()
    while cache.length < len(ids) - 1:
        start = cache.length
        new = ids[start : min(start + IDLE_CHUNK, len(ids) - 1)]
        wanted = tuple(i for i in range(len(new)) if start + i >= first)
        logits = forward.run([Work(cache, new, wanted)])
        if wanted:
            targets = ids[start + wanted[0] + 1 : start + len(new) + 1]
            parts.append(picked(logits, targets))
            tokens += describe(logits, targets)
        yield
    return Score(sum(p for p, _ in parts), tail, all(greedy for _, greedy in parts), tokens)


def picked(logits: Tensor, targets: Sequence[int]) -> tuple[float, bool]:
    """Return the summed log-probability of `targets` under `logits` (targets, vocab), in float32.

    And whether each target is as likely as the likeliest of its row.
    """
    wanted = torch.tensor(targets, device=logits.device).unsqueeze(1)
    total, greedy = 0.0, True
    # A few rows at a time stay in the processor's caches: ten times as fast as all at once.
    rows = _ROWS_AT_ONCE if logits.device.type == "cpu" else len(targets)
    for some, ids in zip(logits.split(rows), wanted.split(rows), strict=True):
        logprobs = some.float().log_softmax(-1)
        chosen = logprobs.gather(1, ids)
        total += float(chosen.sum())
        greedy = greedy and bool((chosen == logprobs.amax(-1, keepdim=True)).all())
    return total, greedy
