"""Percentiles against NumPy, and the same statistic in the tracker and the benchmark."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.bench.stats import summarize_level
from llmctl.config.bench import BenchConfig
from llmctl.monitor import ServingMonitor
from llmctl.percentiles import observed_percentiles, percentile
from llmctl.types import RequestTrace
from tests.bench.records import level_run, reply
from tests.fakes import RecordingTracker


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_a_percentile_is_that_of_numpy(values: list[float], percent: float) -> None:
    expected = float(np.percentile(values, percent))
    assert percentile(values, percent) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300), st.integers(0, 100))
def test_an_observed_percentile_is_the_next_value_above(values: list[int], percent: int) -> None:
    (found,) = observed_percentiles(values, percent)
    assert found in values
    exact = percentile(values, percent)
    tolerance = 1e-9 * max(1, found)
    assert found >= exact - tolerance
    assert not any(exact + tolerance < value < found for value in values)


def test_percentiles_of_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="needs values"):
        observed_percentiles([], 50)


def test_the_tracker_and_the_benchmark_report_the_same_latency_percentiles() -> None:
    waits = [0.011, 0.5, 0.02, 0.13, 0.31, 0.09, 0.27]
    tracker = RecordingTracker()
    monitor = ServingMonitor(tracker)
    for number, wait in enumerate(waits):
        monitor.record(RequestTrace(f"chatcmpl-{number}", 1_800_000_000.0, 1.0, ttft_s=wait))
    monitor.close()
    tracked = {name: value for name, value, _ in tracker.points}
    run = level_run(*((reply(wait, wait + 0.1),) for wait in waits))
    level = summarize_level(
        run, BenchConfig(max_tokens=4), side=0, prompts="short", concurrency=1, round_=0
    )
    for name in ("ttft_p50_s", "ttft_p95_s"):
        assert tracked[f"serve/{name}"] == pytest.approx(getattr(level.figures, name))
