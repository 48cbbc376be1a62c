"""Number of CPU threads per step, measured for decoding and adapted to the load of the machine."""

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
from llmctl.engine.batching.kv_cache import KVCache
from llmctl.engine.batching.kv_pool import KVPool

_PAUSE_SOFT = 1
"""`omp_pause_soft` of OpenMP 5.0: thread-private data survive."""
_DECODE_TOKENS = 32
"""Tokens up to which a step counts as decoding. Larger steps have work for every thread."""
_MEASURED_ROWS = 4
_MEASURED_STEPS = 4
_MEASURE_LIMIT_S = 3.0
"""Time limit of the measurement. A model whose steps take this long has work for every thread."""


class ThreadedForward:
    """Runs another forward pass with a number of threads that depends on the size of the step.

    A decoding step is many small operators: starting a second thread for each can take longer than
    the operator, and a thread that shares its core with another process delays all others.

    Args:
        forward: the pass to run.
        decode_threads: threads of a decoding step.
        cpu_load: load of other processes.
    """

    def __init__(self, forward: Forward, decode_threads: int, cpu_load: CpuLoadMonitor) -> None:
        self._forward = forward
        self._all_threads = torch.get_num_threads()
        self._decode_threads = decode_threads
        self._cpu_load = cpu_load

    def run(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step; see `Forward.run`."""
        self._set_threads(batch)
        return self._forward.run(batch)

    def states(self, batch: Sequence[BatchItem]) -> Tensor:
        """Compute one step up to the head; see `Forward.states`."""
        self._set_threads(batch)
        return self._forward.states(batch)

    def _set_threads(self, batch: Sequence[BatchItem]) -> None:
        decoding = sum(len(item.token_ids) for item in batch) <= _DECODE_TOKENS
        limit = self._decode_threads if decoding else self._all_threads
        torch.set_num_threads(self._cpu_load.available_threads(limit))

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter; see `Forward.put_adapter`."""
        self._forward.put_adapter(key, adapter)

    def drop_adapter(self, key: str) -> None:
        """Remove an adapter."""
        self._forward.drop_adapter(key)


def measure_decode_threads(forward: Forward, pool: KVPool, cpu_load: CpuLoadMonitor) -> int:
    """Return the fastest number of threads for decoding: all, half or one. Leaves the pool empty.

    While other programs are busy it returns all: the measurement would stay valid only as long as
    they run, and `ThreadedForward` leaves cores to them in any case.
    """
    all_threads = torch.get_num_threads()
    capacity = 2 + 2 * _MEASURED_STEPS
    caches = [pool.acquire([row, row], None, capacity) for row in range(_MEASURED_ROWS)]
    rows = [cache for cache in caches if cache is not None]
    best, best_s = all_threads, float("inf")
    start = time.perf_counter()
    try:
        for count in sorted({all_threads, max(all_threads // 2, 1), 1}, reverse=True):
            torch.set_num_threads(count)
            step_s = _fastest_step_s(forward, rows)
            # Fewer threads must be clearly faster, since larger batches profit from all of them.
            if step_s < best_s * (0.95 if best == all_threads else 1.0):
                best, best_s = count, step_s
            if time.perf_counter() - start > _MEASURE_LIMIT_S:
                break
    finally:
        torch.set_num_threads(all_threads)
        for cache in rows:
            pool.release(cache, discard=True)
    return best if cpu_load.available_threads(all_threads) == all_threads else all_threads


def release_openmp_threads() -> None:
    """Release the OpenMP worker threads of the calling thread.

    GNU OpenMP keeps a team of threads for every thread that computes. While there are more of them
    than cores, they no longer spin, and steps on another thread take twice as long. Other OpenMP
    libraries are left alone.
    """
    if sys.platform != "linux":
        return
    libraries = {m.path for m in psutil.Process().memory_maps() if "libgomp" in Path(m.path).name}
    for path in libraries:
        with suppress(OSError, AttributeError):  # before OpenMP 5.0 it has no such function
            ctypes.CDLL(path).omp_pause_resource_all(_PAUSE_SOFT)


def _fastest_step_s(forward: Forward, rows: Sequence[KVCache]) -> float:
    times = []
    for _ in range(_MEASURED_STEPS):
        for cache in rows:
            cache.truncate(0)
        start = time.perf_counter()
        forward.run([BatchItem(cache, [1]) for cache in rows])
        times.append(time.perf_counter() - start)
    return min(times)
