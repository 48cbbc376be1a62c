"""Which of the runs, in which order, and which is the best?"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import RunKind, RunRecord, RunStatus

MetricDirection = Literal["higher", "lower"]
SORT_FIELDS: Final = ("started", "duration", "name", "kind", "model", "status")
"""What runs are ordered by, besides their metrics."""

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# Words in the names of metrics; `per` as in tokens_per_s.
_LOWER: Final = re.compile(
    r"_(loss|perplexity|ppl|errors?|wer|cer|rejected|dropped|latency|ttft|itl|queued?)(_|$)"
)
_HIGHER: Final = re.compile(
    r"_(accuracy|acc|score|f1|bleu|rouge|precision|recall|ceval|mmlu|share|tps|per)(_|$)"
)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are meant; None means any."""

    kind: RunKind | None = None
    model: str | None = None
    """A part of the model's name, in any case."""
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
    """Return Unix seconds of `7d`, `2h`, `30m`, `1w` before `now`, or of an ISO date or time.

    Raises:
        ConfigError: it is neither.
    """
    span = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip().lower())
    try:
        if span is not None:
            return (now - timedelta(**{_UNITS[span[2]]: float(span[1])})).timestamp()
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--since {text!r} is no time",
            hint="write 30m, 2h, 7d or 1w for the time until now, or a date such as 2026-05-31",
        ) from None


def sort_runs(runs: Sequence[RunRecord], by: str) -> list[RunRecord]:
    """Sort runs by a field or by the latest value of a metric; a leading `-` turns it round.

    Runs without such a value come last either way.

    Raises:
        ConfigError: no run has such a metric.
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
    """Return the run whose latest value of a metric is the highest, or the lowest.

    Raises:
        LlmctlError: no run has a value.
    """
    rated = [run for run in runs if not math.isnan(run.metrics.get(metric, math.nan))]
    if not runs:
        raise LlmctlError("there are no such runs yet")
    if not rated:
        raise LlmctlError(
            f"none of the {len(runs)} runs has a value of {metric!r}",
            hint=f"their metrics: {metric_names(runs)}" if metric_names(runs) else "",
        )
    choose = max if better == "higher" else min
    return choose(rated, key=lambda run: run.metrics[metric])


def metric_names(runs: Iterable[RunRecord]) -> str:
    """Name the metrics that these runs have."""
    return ", ".join(sorted({name for run in runs for name in run.metrics}))


def metric_direction(metric: str) -> MetricDirection | None:
    """Say by a metric's name which values are better; None where neither is (a learning rate)."""
    folder, _, name = metric.rpartition("/")
    words = re.sub(r"[^a-z0-9]+", "_", f"_{name.lower()}")
    if _LOWER.search(words):
        return "lower"
    if _HIGHER.search(words):
        return "higher"
    if words.endswith(("_s", "_ms", "_seconds")):
        return "lower"
    return "higher" if folder.split("/")[0] in ("eval", "test") else None
