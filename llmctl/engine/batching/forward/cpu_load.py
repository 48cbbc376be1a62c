"""CPU load of other processes, and the number of threads that it leaves free cores for.

OpenMP threads wait for each other after every operator. A thread that shares its core delays all of
them: beside one busy program, two threads on two cores take three to seven times as long for a step
as one thread (docs/performance.md).
"""

import time
from collections.abc import Callable

import psutil

_INTERVAL_S = 0.25
"""Time between two readings. The kernel counts hundredths of a second per core, so this measures
the load to about a tenth of a core. A new load is noticed after this time at the latest."""


def _busy_s() -> float:
    """Return the busy seconds of all cores together since the machine started."""
    times = psutil.cpu_times()
    # "steal" is time of other virtual machines; "guest" is part of "user".
    return float(
        sum(getattr(times, kind, 0) for kind in ("user", "nice", "system", "irq", "softirq"))
    )


class CpuLoadMonitor:
    """Measures how many cores other processes use.

    Args:
        cores: of the machine, as the kernel counts them.
        busy_s: returns the busy seconds of all cores together.
        own_s: returns those of this process.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        cores: int | None = None,
        *,
        busy_s: Callable[[], float] = _busy_s,
        own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cores = cores or psutil.cpu_count() or 1
        self._busy_s, self._own_s, self._clock = busy_s, own_s, clock
        self._last_reading = self._read()
        self._other_load = 0.0

    def available_threads(self, limit: int) -> int:
        """Return how many of `limit` threads have a core of their own, at least one.

        Other load of up to half a core is ignored: it is short, and the threads fit around it.
        """
        if limit > 1 and self._clock() - self._last_reading[0] >= _INTERVAL_S:
            reading = self._read()
            elapsed, busy, own = (b - a for a, b in zip(self._last_reading, reading, strict=True))
            self._other_load, self._last_reading = max(busy - own, 0.0) / elapsed, reading
        return min(limit, max(round(self._cores - self._other_load), 1))

    def _read(self) -> tuple[float, float, float]:
        return self._clock(), self._busy_s(), self._own_s()
