"""Conversion of stored values to a `RunRecord`, common to all readers, and of records to JSON."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Final

from llmctl.monitor.write.liveness import DIED_ERROR, is_alive, last_seen
from llmctl.types import (
    TAG_ERROR,
    TAG_KEY_METRIC,
    TAG_KIND,
    TAG_MODEL,
    TAG_MODEL_ID,
    TAG_NOTE,
    TAG_PARENT,
    TAG_PROCESS,
    TAG_USED_MODEL_ID,
    DatasetUse,
    MetricPoint,
    RunRecord,
    RunStatus,
)

STATUSES: Final[Mapping[str, RunStatus]] = {
    "SCHEDULED": "running",
    "RUNNING": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
}
"""Status of MLflow -> status of llmctl."""
_MIN_INFINITE: Final = 1.7e308
"""MLflow stores infinity as the largest finite number, because not every database has infinity."""
_DEFAULT_KEY_METRICS: Final = ("eval/ceval", "eval/loss", "train/loss", "serve/tokens_per_s")


class RunReader:
    """Reads the runs of one store. This class is the reader of a missing store."""

    def runs(self, *, deleted: bool = False) -> list[RunRecord]:  # noqa: ARG002  holds nothing
        """Return every run of llmctl, or every deleted one, newest first."""
        return []

    def curves(self, run_id: str) -> dict[str, list[MetricPoint]]:  # noqa: ARG002  holds nothing
        """Return the points of every metric, ordered by step."""
        return {}

    def count_traces(self, run_id: str) -> int:  # noqa: ARG002  holds nothing
        """Return the number of traces of a run."""
        return 0

    def close(self) -> None:
        """Close the store."""


def run_record(
    run_id: str,
    name: str | None,
    status: str,
    started_ms: int | None,
    ended_ms: int | None,
    artifact_uri: str | None,
    *,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    datasets: Iterable[DatasetUse],
    deleted: bool,
) -> RunRecord:
    """Make the record of a run, which may be of another program.

    A RUNNING run whose process is dead gets the status `killed`.
    """
    default = next((name for name in _DEFAULT_KEY_METRICS if name in metrics), None)
    run = RunRecord(
        run_id=run_id,
        name=name or run_id[:8],
        kind=tags.get(TAG_KIND, ""),
        model=tags.get(TAG_MODEL, ""),
        status=STATUSES.get(status, "running"),
        started=(started_ms or 0) / 1000,
        ended=None if ended_ms is None else ended_ms / 1000,
        params=params,
        metrics=metrics,
        tags=tags,
        error=tags.get(TAG_ERROR, ""),
        note=tags.get(TAG_NOTE, ""),
        key_metric=tags.get(TAG_KEY_METRIC, default),
        parent_run_id=tags.get(TAG_PARENT),
        model_id=tags.get(TAG_MODEL_ID),
        used_model_id=tags.get(TAG_USED_MODEL_ID),
        artifact_uri=artifact_uri or "",
        datasets=tuple(sorted(datasets, key=lambda use: (use.name, use.digest))),
        deleted=deleted,
    )
    process = run.tags.get(TAG_PROCESS)
    if run.status != "running" or process is None or is_alive(process, last_seen(run.tags)):
        return run
    ended = last_seen(run.tags) or run.started
    return replace(run, status="killed", ended=ended, error=run.error or DIED_ERROR)


def dataset_use(name: str, digest: str, context: str, source: str, profile: str) -> DatasetUse:
    """Parse a dataset of MLflow, whose source and profile are JSON with varying keys."""
    where = _mapping(source)
    rows = _mapping(profile).get("num_rows")
    return DatasetUse(
        name=name,
        digest=digest,
        context=context,
        source=str(next((where[key] for key in ("uri", "path", "url") if key in where), "")),
        rows=rows if isinstance(rows, int) else None,
    )


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def restore_infinity(value: float) -> float:
    """Return the logged value of a stored metric."""
    return math.copysign(math.inf, value) if abs(value) > _MIN_INFINITE else value


def run_to_dict(run: RunRecord) -> dict[str, Any]:
    """Return a run as values of JSON, with times in UTC and null for NaN and infinity."""
    return {
        "id": run.run_id,
        "name": run.name,
        "kind": run.kind,
        "model": run.model,
        "status": run.status,
        "started": _utc(run.started),
        "ended": None if run.ended is None else _utc(run.ended),
        "duration_s": run.duration_s,
        "key_metric": run.key_metric,
        "metrics": {name: finite_or_none(value) for name, value in run.metrics.items()},
        "params": dict(run.params),
        "tags": dict(run.tags),
        "datasets": [asdict(use) for use in run.datasets],
        "error": run.error,
        "note": run.note,
        "parent": run.parent_run_id,
        "model_id": run.model_id,
        "used_model_id": run.used_model_id,
        "artifacts": run.artifact_uri,
        "deleted": run.deleted,
    }


def finite_or_none(value: float | None) -> float | None:
    """Return a number that JSON can represent, or None."""
    return value if value is not None and math.isfinite(value) else None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
