"""CPU threads: cores left to other processes, and the release of OpenMP threads."""

import subprocess
import sys

import pytest

from llmctl.engine.batching.forward.cpu_load import CpuLoadMonitor


class FakeMachine:
    """CPU counters of a machine on which other processes use `others` cores."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0

    def run(self, seconds: float, *, own: float, others: float) -> None:
        self.now += seconds
        self.own += seconds * own
        self.busy += seconds * (own + others)

    def monitor(self, cores: int) -> CpuLoadMonitor:
        return CpuLoadMonitor(
            cores, busy_s=lambda: self.busy, own_s=lambda: self.own, clock=lambda: self.now
        )


@pytest.mark.parametrize(
    ("cores", "most", "own", "others", "threads"),
    [
        (2, 2, 2.0, 0.0, 2),
        (2, 2, 1.7, 0.3, 2),  # a client that sends and reads
        (2, 2, 1.3, 0.7, 1),  # a program that shares a core with ours
        (2, 2, 1.0, 1.0, 1),
        (2, 2, 0.2, 1.8, 1),
        (16, 8, 8.0, 5.0, 8),  # enough cores for all
        (16, 8, 8.0, 12.0, 4),
        (64, 2, 2.0, 40.0, 2),  # a container on a large machine
        (2, 1, 1.0, 1.0, 1),
    ],
)
def test_a_core_that_another_process_uses_is_left_to_it(
    cores: int, most: int, own: float, others: float, threads: int
) -> None:
    machine = FakeMachine()
    monitor = machine.monitor(cores)
    machine.run(1.0, own=own, others=others)
    assert monitor.available_threads(most) == threads


def test_the_load_is_that_of_the_last_interval() -> None:
    machine = FakeMachine()
    monitor = machine.monitor(2)
    machine.run(3600, own=0.0, others=1.0)
    assert monitor.available_threads(2) == 1
    machine.run(0.1, own=2.0, others=0.0)  # shorter than the interval between two readings
    assert monitor.available_threads(2) == 1
    machine.run(0.2, own=2.0, others=0.0)
    assert monitor.available_threads(2) == 2


def test_the_default_counters_see_the_load_of_another_process() -> None:
    # In an interval of 0.3 s a process that computes for 0.3 s uses a whole core; the claim of 64
    # cores makes the result depend on that load alone.
    now = iter((0.0, 0.3, 0.3))
    monitor = CpuLoadMonitor(64, clock=lambda: next(now))
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert monitor.available_threads(64) < 64


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux alone")
def test_released_openmp_threads_end() -> None:
    code = """
import llmctl.engine, psutil, torch
from llmctl.engine.batching.forward.threads import release_openmp_threads
torch.set_num_threads(3)
alone = psutil.Process().num_threads()
(torch.ones(2000, 2000) + 1).sum()
together = psutil.Process().num_threads()
release_openmp_threads()
print(together - alone, psutil.Process().num_threads() - alone)
assert float((torch.ones(2000, 2000) + 1).sum()) == 8e6
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "0"]
