"""What do the curves of a run come to, and how do several runs differ?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmctl.monitor.read.query import MetricDirection, metric_direction
from llmctl.types import MetricPoint, RunRecord


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """One curve in five numbers. Lowest and highest leave out what is not a number."""

    name: str
    first: float
    last: float
    lowest: float
    highest: float
    points: int


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """The latest value of one metric in each of several runs."""

    name: str
    values: tuple[float | None, ...]
    better: MetricDirection | None
    best: frozenset[int] = frozenset()
    """Indexes of the runs that are ahead; empty if the metric has no better side, or all agree."""
    worst: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Several runs side by side; every row has one value per run."""

    runs: tuple[RunRecord, ...]
    differing: Mapping[str, tuple[str | None, ...]]
    """Parameters that are not the same in all of the runs."""
    equal: Mapping[str, str]
    metrics: tuple[MetricComparison, ...]


def summarize_metrics(curves: Mapping[str, Sequence[MetricPoint]]) -> list[MetricSummary]:
    """Reduce every curve that has a point."""
    return [_summary(name, points) for name, points in curves.items() if points]


def _summary(name: str, points: Sequence[MetricPoint]) -> MetricSummary:
    numbers = [point.value for point in points if not math.isnan(point.value)] or [math.nan]
    return MetricSummary(
        name, points[0].value, points[-1].value, min(numbers), max(numbers), len(points)
    )


def compare_runs(runs: Sequence[RunRecord]) -> RunComparison:
    """Lay the settings and the latest figures of runs side by side."""
    rows = {
        name: tuple(run.params.get(name) for run in runs)
        for name in sorted({name for run in runs for name in run.params})
    }
    differing = {name: row for name, row in rows.items() if len(set(row)) > 1}
    equal = {name: str(row[0]) for name, row in rows.items() if name not in differing}
    names = sorted({name for run in runs for name in run.metrics})
    return RunComparison(tuple(runs), differing, equal, tuple(_metric_row(n, runs) for n in names))


def _metric_row(name: str, runs: Sequence[RunRecord]) -> MetricComparison:
    values = tuple(run.metrics.get(name) for run in runs)
    side = metric_direction(name)
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if side is None or len(set(numbers)) < 2:
        return MetricComparison(name, values, side)
    low, high = min(numbers), max(numbers)
    best, worst = (low, high) if side == "lower" else (high, low)
    return MetricComparison(name, values, side, _where(values, best), _where(values, worst))


def _where(values: Sequence[float | None], wanted: float) -> frozenset[int]:
    return frozenset(index for index, value in enumerate(values) if value == wanted)


def x_values(points: Sequence[MetricPoint]) -> tuple[list[float], str]:
    """Return what a curve is drawn over, and its unit: steps, or seconds if all steps are one."""
    if len({point.step for point in points}) > 1:
        return [point.step for point in points], "step"
    return [point.time - points[0].time for point in points], "seconds"
