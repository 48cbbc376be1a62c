"""How many threads are worth having beside what other programs do on this machine?

Threads that wait for each other at every operator must all be running. One that shares its core
holds up the rest: beside a single busy program, two threads on two cores take three to seven times
as long for a step as one (docs/performance.md).
"""

import time
from collections.abc import Callable

import psutil

_INTERVAL_S = 0.25
"""The kernel counts in hundredths of a second for each core, so this is good to a tenth of a core
or so; and at worst so much time is lost when another program begins."""


def _busy_s() -> float:
    """Return the seconds that all cores together have worked since the machine started."""
    spent = psutil.cpu_times()
    # In a virtual machine "steal" is no work of ours or our neighbours'; "guest" is in "user".
    return float(
        sum(getattr(spent, kind, 0) for kind in ("user", "nice", "system", "irq", "softirq"))
    )


class CpuLoadMonitor:
    """Watches how much of the processor other processes use.

    Args:
        cores: of the machine, as the kernel counts them.
        busy_s: seconds worked by all cores together.
        own_s: those of this process among them.
        clock: seconds.
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
        self._seen = self._look()
        self._used = 0.0

    def threads(self, most: int) -> int:
        """Return how many of `most` threads have a core to themselves, at least one.

        Up to half a core of other work is put up with: it comes and goes, and threads fit around
        it.
        """
        if most > 1 and self._clock() - self._seen[0] >= _INTERVAL_S:
            now = self._look()
            passed, worked, ours = (b - a for a, b in zip(self._seen, now, strict=True))
            self._used, self._seen = max(worked - ours, 0.0) / passed, now
        return min(most, max(round(self._cores - self._used), 1))

    def _look(self) -> tuple[float, float, float]:
        return self._clock(), self._busy_s(), self._own_s()
