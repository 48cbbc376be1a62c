"""Overhead of tracking: `python tests/benchmarks/tracking.py [SECONDS]`.

Runs steps of about 30 ms that log eight metrics each. Prints the time of a `log_metrics` call, the
CPU time of the writing thread, and both as a share of the steps. CPU time depends little on the
load of the machine.
"""

import os
import sys
import tempfile
import threading
import time
from statistics import median

import psutil
import torch

from llmctl.monitor import Tracker, open_tracker
from llmctl.types import RunStart

CURVES = {f"train/curve_{number}": 0.5 for number in range(8)}


def writer_s() -> float:
    """Return the CPU time of the writing thread in seconds."""
    (thread,) = (t for t in threading.enumerate() if t.name == "llmctl-tracking")
    times = {t.id: t.user_time + t.system_time for t in psutil.Process().threads()}
    return float(times[thread.native_id or 0])


def work(tracker: Tracker, seconds: float) -> tuple[list[float], float]:
    """Return the microseconds of each call, and the seconds that all steps took."""
    left, right = torch.rand(768, 768), torch.rand(768, 768)
    calls: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            left @ right
        called = time.perf_counter()
        tracker.log_metrics(CURVES, step=len(calls))
        calls.append((time.perf_counter() - called) * 1e6)
    return sorted(calls), time.perf_counter() - began


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["LLMCTL_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        began = time.perf_counter()
        tracker = open_tracker(RunStart("bench", "none"), warn=print)
        print(f"open, with a new store    {time.perf_counter() - began:8.2f} s")
        work(tracker, 3)
        before = writer_s()
        calls, took_s = work(tracker, seconds)
        written_s = writer_s() - before
        print(f"steps                     {len(calls):8} of {1e3 * took_s / len(calls):.1f} ms")
        print(f"log_metrics, median       {median(calls):8.1f} us")
        print(f"log_metrics, 99th of 100  {calls[len(calls) * 99 // 100]:8.1f} us")
        print(f"log_metrics, slowest      {calls[-1]:8.1f} us")
        print(f"calls, share of the step  {sum(calls) / 1e4 / took_s:8.3f} %")
        print(f"writing, share of a core  {100 * written_s / took_s:8.3f} %")
        began = time.perf_counter()
        tracker.end("finished")
        print(f"end                       {time.perf_counter() - began:8.2f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
