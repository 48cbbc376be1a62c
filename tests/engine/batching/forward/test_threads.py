"""Threads make room for other programs, and stand in no other thread's way."""

import subprocess
import sys

import psutil
import pytest

from llmctl.engine.batching.forward.cpu_load import CpuLoadMonitor


class Machine:
    """Readings of a processor on which `others` cores' worth of other programs run."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0

    def run(self, seconds: float, *, own: float, others: float) -> None:
        self.now += seconds
        self.own += seconds * own
        self.busy += seconds * (own + others)

    def watched(self, cores: int) -> CpuLoadMonitor:
        return CpuLoadMonitor(
            cores, busy_s=lambda: self.busy, own_s=lambda: self.own, clock=lambda: self.now
        )


@pytest.mark.parametrize(
    ("cores", "most", "own", "others", "threads"),
    [
        (2, 2, 2.0, 0.0, 2),
        (2, 2, 1.7, 0.3, 2),  # a client that asks and reads
        (2, 2, 1.3, 0.7, 1),  # a program that has to share its core with ours
        (2, 2, 1.0, 1.0, 1),
        (2, 2, 0.2, 1.8, 1),
        (16, 8, 8.0, 5.0, 8),  # cores enough for all
        (16, 8, 8.0, 12.0, 4),
        (64, 2, 2.0, 40.0, 2),  # a container on a large machine
        (2, 1, 1.0, 1.0, 1),
    ],
)
def test_a_busy_core_is_left_to_who_keeps_it_busy(
    cores: int, most: int, own: float, others: float, threads: int
) -> None:
    machine = Machine()
    neighbours = machine.watched(cores)
    machine.run(1.0, own=own, others=others)
    assert neighbours.threads(most) == threads


def test_the_last_moments_count_and_not_the_whole_past() -> None:
    machine = Machine()
    neighbours = machine.watched(2)
    machine.run(3600, own=0.0, others=1.0)
    assert neighbours.threads(2) == 1
    machine.run(0.1, own=2.0, others=0.0)  # too short a time to tell
    assert neighbours.threads(2) == 1
    machine.run(0.2, own=2.0, others=0.0)
    assert neighbours.threads(2) == 2


def test_the_readings_are_of_this_machine() -> None:
    neighbours = CpuLoadMonitor()
    assert 1 <= neighbours.threads(psutil.cpu_count() or 1) <= (psutil.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux alone")
def test_whoever_has_loaded_a_model_keeps_no_threads() -> None:
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
