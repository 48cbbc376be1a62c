"""How many threads compute a step on this CPU? Measured, not assumed."""

import ctypes
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from llmctl.engine.batching.forward.cpu_load import CpuLoadMonitor
from llmctl.engine.batching.forward.lora import LoraAdapter
from llmctl.engine.batching.forward.packed import BatchItem, Forward
from llmctl.engine.batching.kv import KVCache, KVPool

_PAUSE_SOFT = 1
"""`omp_pause_soft` of OpenMP 5.0: what the threads keep of their own survives."""
_SMALL_STEP = 32
"""Tokens up to which a step counts as decoding. Larger ones have work for every thread."""
_ROWS = 4
_STEPS = 4
_PATIENCE_S = 3.0
"""A model whose steps take long has work for every thread, and is not kept from starting."""


class ThreadedForward:
    """Runs another forward with the number of threads that suits the size of the step.

    A decoding step is many small operators: handing each to a second thread can take longer than
    its work, and a thread that has to share its core with another process holds up all others.
    """

    def __init__(self, forward: Forward, decode_threads: int, neighbours: CpuLoadMonitor) -> None:
        self._forward = forward
        self._all_threads = torch.get_num_threads()
        self._decode_threads = decode_threads
        self._neighbours = neighbours

    def run(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        self._suit(work)
        return self._forward.run(work)

    def states(self, work: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        self._suit(work)
        return self._forward.states(work)

    def _suit(self, work: Sequence[BatchItem]) -> None:
        small = sum(len(item.token_ids) for item in work) <= _SMALL_STEP
        most = self._decode_threads if small else self._all_threads
        torch.set_num_threads(self._neighbours.threads(most))

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter; see `Forward.put_adapter`."""
        self._forward.put_adapter(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Forget an adapter."""
        self._forward.drop_adapter(key)


def measure_decode_threads(forward: Forward, pool: KVPool, neighbours: CpuLoadMonitor) -> int:
    """Return how many threads decode fastest: all, half or one. Leaves no trace in the pool.

    While other programs are at work all count as fastest: what is measured then would be kept after
    they have ended, and `ThreadedForward` makes room for them anyway.
    """
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
    return best if neighbours.threads(most) == most else most


def release_openmp_threads() -> None:
    """Let go of the OpenMP threads that have computed for the calling thread.

    GNU's OpenMP gives every thread that computes a team of its own, and keeps it. While there are
    more of these than cores, it has none of them spin: steps on another thread would take twice as
    long. Under any other OpenMP nothing happens.
    """
    if sys.platform != "linux":
        return
    libraries = {m.path for m in psutil.Process().memory_maps() if "libgomp" in Path(m.path).name}
    for path in libraries:
        with suppress(OSError, AttributeError):  # one from before OpenMP 5.0 has no such function
            ctypes.CDLL(path).omp_pause_resource_all(_PAUSE_SOFT)


def _fastest_step(forward: Forward, rows: Sequence[KVCache]) -> float:
    times = []
    for _ in range(_STEPS):
        for cache in rows:
            cache.truncate(0)
        begin = time.perf_counter()
        forward.run([BatchItem(cache, [1]) for cache in rows])
        times.append(time.perf_counter() - begin)
    return min(times)
