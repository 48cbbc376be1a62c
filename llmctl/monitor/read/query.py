"""Selection, order and comparison of runs, and summaries of their metrics."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import MetricPoint, RunKind, RunRecord, RunStatus

MetricDirection = Literal["higher", "lower"]
SORT_FIELDS: Final = ("started", "duration", "name", "kind", "model", "status")
"""Fields that runs are sorted by, besides their metrics."""

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# Words in the names of metrics; `per` is for tokens_per_s.
_LOWER: Final = re.compile(
    r"_(loss|perplexity|ppl|errors?|wer|cer|rejected|dropped|latency|ttft|itl|queued?)(_|$)"
)
_HIGHER: Final = re.compile(
    r"_(accuracy|acc|score|f1|bleu|rouge|precision|recall|ceval|mmlu|share|tps|per)(_|$)"
)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """A filter of runs; None admits all."""

    kind: RunKind | None = None
    model: str | None = None
    """A substring of the model name, case-insensitive."""
    status: RunStatus | None = None
    since: float | None = None
    """Started at or after, in Unix seconds."""

    def admits(self, run: RunRecord) -> bool:
        return (
            (self.kind is None or run.kind == self.kind)
            and (self.model is None or self.model.casefold() in run.model.casefold())
            and (self.status is None or run.status == self.status)
            and (self.since is None or run.started >= self.since)
        )


def parse_time(text: str, now: datetime) -> float:
    """Return the Unix seconds of `30m`, `2h`, `7d` or `1w` before `now`, or of an ISO date or time.

    Raises:
        ConfigError: the text has another form.
    """
    span = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip().lower())
    try:
        if span is not None:
            return (now - timedelta(**{_UNITS[span[2]]: float(span[1])})).timestamp()
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--since {text!r} is not a time",
            hint="use 30m, 2h, 7d or 1w before now, or a date such as 2026-05-31",
        ) from None


def sort_runs(runs: Sequence[RunRecord], by: str) -> list[RunRecord]:
    """Sort runs by a field or by the latest value of a metric; a leading `-` sorts descending.

    Runs without a value come last in both orders.

    Raises:
        ConfigError: `by` is not a field, and no run has such a metric.
    """
    name = by.removeprefix("-")
    if runs and name not in SORT_FIELDS and not any(name in run.metrics for run in runs):
        raise ConfigError(
            f"there is neither a field nor a metric {name!r} to sort by",
            hint=f"fields: {', '.join(SORT_FIELDS)}; metrics: {metric_names(runs)}",
        )
    keys = [(_sort_key(run, name), run) for run in runs]
    known = [(key, run) for key, run in keys if key is not None]
    known.sort(key=lambda pair: pair[0], reverse=by.startswith("-"))
    return [run for _, run in known] + [run for key, run in keys if key is None]


def _sort_key(run: RunRecord, name: str) -> tuple[float, str] | None:
    number: float | None
    if name == "started":
        number = run.started
    elif name == "duration":
        number = run.duration_s
    elif name in SORT_FIELDS:
        return 0.0, str(getattr(run, name)).casefold()
    else:
        number = run.metrics.get(name)
    return None if number is None or math.isnan(number) else (number, "")


def best_run(runs: Sequence[RunRecord], metric: str, better: MetricDirection) -> RunRecord:
    """Return the run with the highest or the lowest latest value of a metric.

    Raises:
        LlmctlError: there are no runs, or none has a value.
    """
    with_value = [run for run in runs if not math.isnan(run.metrics.get(metric, math.nan))]
    if not runs:
        raise LlmctlError("there are no such runs yet")
    if not with_value:
        raise LlmctlError(
            f"none of the {len(runs)} runs has a value of {metric!r}",
            hint=f"their metrics: {metric_names(runs)}" if metric_names(runs) else "",
        )
    choose = max if better == "higher" else min
    return choose(with_value, key=lambda run: run.metrics[metric])


def metric_names(runs: Iterable[RunRecord]) -> str:
    """Return the names of the metrics of runs, separated by commas."""
    return ", ".join(sorted({name for run in runs for name in run.metrics}))


def metric_direction(metric: str) -> MetricDirection | None:
    """Return which values of a metric are better, by its name; None for neither (learning rate)."""
    folder, _, name = metric.rpartition("/")
    words = re.sub(r"[^a-z0-9]+", "_", f"_{name.lower()}")
    if _LOWER.search(words):
        return "lower"
    if _HIGHER.search(words):
        return "higher"
    if words.endswith(("_s", "_ms", "_seconds")):
        return "lower"
    return "higher" if folder.split("/")[0] in ("eval", "test") else None


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """The summary of one metric of a run. Lowest and highest ignore NaN."""

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
    """Indices of the best runs; empty without a direction, or if all values are equal."""
    worst: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RunComparison:
    """A comparison of several runs; every tuple has one value per run."""

    runs: tuple[RunRecord, ...]
    differing: Mapping[str, tuple[str | None, ...]]
    """Parameters with different values."""
    equal: Mapping[str, str]
    metrics: tuple[MetricComparison, ...]


def summarize_metrics(curves: Mapping[str, Sequence[MetricPoint]]) -> list[MetricSummary]:
    """Summarize every metric that has a point."""
    summaries = []
    for name, points in curves.items():
        values = [point.value for point in points]
        numbers = [value for value in values if not math.isnan(value)] or [math.nan]
        if values:
            ends = (values[0], values[-1], min(numbers), max(numbers))
            summaries.append(MetricSummary(name, *ends, len(values)))
    return summaries


def compare_runs(runs: Sequence[RunRecord]) -> RunComparison:
    """Compare the parameters and the latest metric values of runs."""
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
    direction = metric_direction(name)
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if direction is None or len(set(numbers)) < 2:
        return MetricComparison(name, values, direction)
    low, high = min(numbers), max(numbers)
    best, worst = (low, high) if direction == "lower" else (high, low)
    places = (
        frozenset(index for index, value in enumerate(values) if value == end)
        for end in (best, worst)
    )
    return MetricComparison(name, values, direction, *places)


def x_values(points: Sequence[MetricPoint]) -> tuple[list[float], str]:
    """Return the x values of a curve and their unit: steps, or seconds if all steps are equal."""
    if len({point.step for point in points}) > 1:
        return [point.step for point in points], "step"
    return [point.time - points[0].time for point in points], "seconds"
