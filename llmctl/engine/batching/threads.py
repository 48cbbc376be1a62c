"""How many threads compute a step on this CPU? Measured, not assumed."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.engine.batching.adapters import Adapter
from llmctl.engine.batching.forward import Forward, Work
from llmctl.engine.batching.kv import KVCache, KVPool

_SMALL_STEP = 32
"""Tokens up to which a step counts as decoding. Larger ones have work for every thread."""
_ROWS = 4
_STEPS = 4
_PATIENCE_S = 3.0
"""A model whose steps take long has work for every thread, and is not kept from starting."""


class ThreadedForward:
    """Runs another forward with the number of threads that suits the size of the step.

    A decoding step is many small operators: waking a second thread for each can take longer than
    its work, and a thread that has to share its core with another process holds up all others.
    """

    def __init__(self, forward: Forward, decode_threads: int) -> None:
        self._forward = forward
        self._all_threads = torch.get_num_threads()
        self._decode_threads = decode_threads

    def run(self, work: Sequence[Work]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        self._suit(work)
        return self._forward.run(work)

    def states(self, work: Sequence[Work]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        self._suit(work)
        return self._forward.states(work)

    def _suit(self, work: Sequence[Work]) -> None:
        small = sum(len(item.token_ids) for item in work) <= _SMALL_STEP
        torch.set_num_threads(self._decode_threads if small else self._all_threads)

    def put_adapter(self, key: str, adapter: Adapter) -> None:
        """Hold an adapter; see `Forward.put_adapter`."""
        self._forward.put_adapter(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter."""
        self._forward.drop_adapter(key)


def measure_decode_threads(forward: Forward, pool: KVPool) -> int:
    """Return how many threads decode fastest: all, half or one. Leaves no trace in the pool."""
    most = torch.get_num_threads()
    caches = [pool.open([row, row], None, 2 + 2 * _STEPS) for row in range(_ROWS)]
    rows = [cache for cache in caches if cache is not None]
    best, best_s = most, float("inf")
    begun = time.perf_counter()
    try:
        for count in sorted({most, max(most // 2, 1), 1}, reverse=True):
            torch.set_num_threads(count)
            took = _fastest_step(forward, rows)
            # All threads have the benefit of the doubt: they also serve larger batches.
            if took < best_s * (0.95 if best == most else 1.0):
                best, best_s = count, took
            if time.perf_counter() - begun > _PATIENCE_S:
                break
    finally:
        torch.set_num_threads(most)
        for cache in rows:
            pool.release(cache, forget=True)
    return best


def _fastest_step(forward: Forward, rows: Sequence[KVCache]) -> float:
    times = []
    for _ in range(_STEPS):
        for cache in rows:
            cache.truncate(0)
        begin = time.perf_counter()
        forward.run([Work(cache, [1]) for cache in rows])
        times.append(time.perf_counter() - begin)
    return min(times)
