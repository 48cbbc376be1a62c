"""Log-likelihoods of continuations: the shared prefix is computed once, the rest as branches."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmctl.engine.batching.forward.packed import PREFILL_CHUNK_TOKENS, BatchItem, Forward
from llmctl.engine.batching.kv_cache import KVCache, common_prefix_length
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.sampling.logprobs import TokenBytes, token_logprobs
from llmctl.types import Score, TokenLogprob

TokenizedContinuation = tuple[list[int], int]
"""Token ids of a context with its continuation, and the number of tokens of the continuation."""

_ROWS_PER_SOFTMAX = 16
"""Rows of logits per softmax on a CPU: a few stay in the processor's caches, which is ten times as
fast as all at once."""


class LogprobsFn(Protocol):
    """Makes the log-probability entries of the tokens of a continuation."""

    def __call__(self, logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """Return an entry for each of `targets` under `logits` (targets, vocab), or nothing."""


def no_token_logprobs(logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:  # noqa: ARG001  a LogprobsFn
    """Return no entries: the `LogprobsFn` for sums alone."""
    return ()


def top_token_logprobs(token_bytes: TokenBytes, top: int) -> LogprobsFn:
    """Return a `LogprobsFn` that gives each token with the `top` likeliest in its place."""

    def describe(logits: Tensor, targets: Sequence[int]) -> tuple[TokenLogprob, ...]:
        entries = token_logprobs(logits, targets, [top] * len(targets), token_bytes)
        return tuple(entry for entry in entries if entry is not None)

    return describe


def prefill_chunk_tokens() -> int:
    """Return the chunk size while no sequence decodes."""
    return PREFILL_CHUNK_TOKENS


def score_steps(
    forward: Forward,
    pool: KVPool,
    continuations: Sequence[TokenizedContinuation],
    adapter: str | None,
    describe: LogprobsFn = no_token_logprobs,
    chunk: Callable[[], int] = prefill_chunk_tokens,
) -> Generator[None, None, tuple[Score, ...]]:
    """Score the continuations of one context; yields between forward passes.

    The common prefix of all texts is computed once, context and continuation alike. The cache keeps
    it afterwards, so the next question of a benchmark reuses its few-shot examples.

    Args:
        forward: runs the model.
        pool: provides the cache.
        continuations: one or more, each with the same context.
        adapter: key of the adapter, `None` for the base model.
        describe: makes the entries of the tokens.
        chunk: returns the tokens that may be computed at once now, at most `PREFILL_CHUNK_TOKENS`.
            The end of the prefix and the first branches share a step, a chunk of each.

    Raises:
        MemoryError: the cache is too small even when nothing else runs.
    """
    prefix_length = min(len(ids) for ids, _ in continuations) - 1
    for ids, _ in continuations[1:]:
        prefix_length = min(prefix_length, common_prefix_length(continuations[0][0], ids))
    text = continuations[0][0]
    first_scored = min(len(ids) - count for ids, count in continuations)
    # The last token of a text is not an input: texts that differ there alone share a branch.
    branches = dict.fromkeys(tuple(ids[prefix_length:-1]) for ids, _ in continuations)
    capacity = prefix_length + max(
        sum(map(len, group)) for group in _group_branches(branches, prefill_chunk_tokens)
    )
    reusable = text[: min(first_scored, prefix_length + 1)]
    cache = yield from acquire_cache(pool, reusable, adapter, capacity)
    cache.keep_state(prefix_length)
    try:
        of_prefix = _TextLogprobs(describe)
        prefix = text[:prefix_length]
        while prefix_length - cache.length > chunk():
            _compute_chunk(forward, cache, prefix, chunk(), first_scored, of_prefix)
            yield
        scores: dict[int, Score] = {}
        for group in _group_branches(branches, chunk):
            if len(group[0]) > chunk():
                of_branch = {group[0]: of_prefix.copy()}
                whole = [*prefix, *group[0]]
                while cache.length < len(whole):
                    _compute_chunk(
                        forward, cache, whole, chunk(), first_scored, of_branch[group[0]]
                    )
                    yield
                cache.truncate(prefix_length)
            else:
                of_branch = _compute_branches(
                    forward, cache, prefix, group, first_scored, of_prefix
                )
            for index, (ids, count) in enumerate(continuations):
                logprobs = of_branch.get(tuple(ids[prefix_length:-1]))
                if logprobs is not None:
                    skipped = len(ids) - count - first_scored
                    scores[index] = logprobs.score(skipped, count, ids[-1])
            of_branch.clear()
            yield
        return tuple(scores[index] for index in range(len(continuations)))
    finally:
        pool.release(cache)


def _group_branches(
    branches: Iterable[tuple[int, ...]], chunk: Callable[[], int]
) -> Iterator[list[tuple[int, ...]]]:
    """Group branches by what one step can compute; each longer branch is a group, at the end."""
    remaining = deque(sorted(branches, key=len))
    if len(remaining[0]) > chunk():
        yield [()]  # the end of the prefix still has to be computed
    while remaining:
        group = [remaining.popleft()]
        budget = chunk() - len(group[0])
        while remaining and len(remaining[0]) <= budget:
            group.append(remaining.popleft())
            budget -= len(group[-1])
        yield group


def acquire_cache(
    pool: KVPool, ids: list[int], adapter: str | None, capacity: int
) -> Generator[None, None, KVCache]:
    """Acquire a cache as `KVPool.acquire` does; yields while active caches may free space.

    Raises:
        MemoryError: the budget is too small even when nothing else runs.
    """
    while (cache := pool.acquire(ids, adapter, capacity)) is None:
        if not pool.active_count:
            raise MemoryError("the KV cache is too small for this text")
        yield
    return cache


class _TextLogprobs:
    """Log-probabilities of the tokens of one text, from the first scored token on."""

    def __init__(self, describe: LogprobsFn) -> None:
        self._describe = describe
        self._logprobs: list[float] = []
        self._greedy: list[bool] = []
        self._entries: tuple[TokenLogprob, ...] = ()
        self._next: Tensor | None = None
        """Logits (1, vocab) of the token after the last one."""

    def copy(self) -> "_TextLogprobs":
        """Return an independent copy, to be continued by another branch."""
        twin = _TextLogprobs(self._describe)
        twin._logprobs, twin._greedy = [*self._logprobs], [*self._greedy]
        twin._entries, twin._next = self._entries, self._next
        return twin

    def extend(self, ids: Sequence[int], logits: Tensor) -> None:
        """Add the next tokens.

        Args:
            ids: the tokens that were computed.
            logits: (n, vocab), after each of the last n of `ids`: all of them, once scoring began.
        """
        if not len(logits):
            return
        if self._next is not None:
            self._add(self._next, ids[:1])
        if len(logits) > 1:
            self._add(logits[:-1], ids[1 - len(logits) :])
        self._next = logits[-1:].clone()  # a view would keep all of them in memory

    def _add(self, logits: Tensor, targets: Sequence[int]) -> None:
        logprobs, greedy = target_logprobs(logits, targets)
        self._logprobs += logprobs
        self._greedy += greedy
        self._entries += self._describe(logits, targets)

    def score(self, skipped: int, count: int, last: int) -> Score:
        """Return the score of a continuation that ends with the token `last`.

        Args:
            skipped: scored tokens that belong to its context.
            count: its number of tokens.
            last: its last token, which was not computed.
        """
        assert self._next is not None
        logprobs, greedy = target_logprobs(self._next, [last])
        return Score(
            sum(self._logprobs[skipped:]) + logprobs[0],
            count,
            all(self._greedy[skipped:]) and greedy[0],
            self._entries[skipped:] + self._describe(self._next, [last]),
        )


def _compute_chunk(
    forward: Forward,
    cache: KVCache,
    ids: Sequence[int],
    limit: int,
    first_scored: int,
    logprobs: _TextLogprobs,
) -> None:
    """Compute the next `limit` tokens of a text, after those in the cache."""
    start = cache.length
    new = ids[start : start + cache.step_limit(limit, len(ids) - start)]
    indices = tuple(range(max(first_scored - 1 - start, 0), len(new)))
    logprobs.extend(new, forward.run([BatchItem(cache, new, indices)]))


def _compute_branches(
    forward: Forward,
    cache: KVCache,
    prefix: list[int],
    group: Sequence[tuple[int, ...]],
    first_scored: int,
    of_prefix: _TextLogprobs,
) -> dict[tuple[int, ...], _TextLogprobs]:
    """Compute the rest of the prefix and a group of branches in one step."""
    prefix_length, start = len(prefix), cache.length
    new, branches = prefix[start:], [branch for branch in group if branch]
    indices = [*range(max(first_scored - 1 - start, 0), len(new))]
    counts = [len(indices)]
    for branch in branches:
        unscored = min(max(first_scored - 1 - prefix_length, 0), len(branch))
        indices += range(len(new) + unscored, len(new) + len(branch))
        counts.append(len(branch) - unscored)
        new = [*new, *branch]
    of_branch: dict[tuple[int, ...], _TextLogprobs] = {(): of_prefix}
    if not new:
        return of_branch
    item = BatchItem(cache, new, tuple(indices), branches=tuple(map(len, branches)))
    own, *parts = forward.run([item]).split(counts)
    of_prefix.extend(prefix[start:], own)
    for branch, part in zip(branches, parts, strict=True):
        of_branch[branch] = of_prefix.copy()
        of_branch[branch].extend(branch, part)
    return of_branch


def target_logprobs(logits: Tensor, targets: Sequence[int]) -> tuple[list[float], list[bool]]:
    """Return the log-probability of each target, and whether it is the likeliest token.

    Args:
        logits: (targets, vocab); of any type, converted to float32.
        targets: token ids.
    """
    target_ids = torch.tensor(targets, device=logits.device).unsqueeze(1)
    logprobs, greedy = [], []
    rows = _ROWS_PER_SOFTMAX if logits.device.type == "cpu" else len(targets)
    for some, ids in zip(logits.split(rows), target_ids.split(rows), strict=True):
        distribution = some.float().log_softmax(-1)
        logprobs.append(distribution.gather(1, ids).squeeze(1))
        greedy.append(logprobs[-1] == distribution.amax(-1))
    return torch.cat(logprobs).tolist(), torch.cat(greedy).tolist()
