"""What does the tracking store learn of an evaluation?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmctl.engine.models.provenance import Provenance
from llmctl.monitor import Tracker
from llmctl.types import (
    TAG_KEY_METRIC,
    BenchmarkPlan,
    BenchmarkScore,
    DatasetRef,
    EvalReport,
    RunStart,
)


def run_start(
    model: str,
    plans: Sequence[BenchmarkPlan],
    params: Mapping[str, object],
    parent_run_id: str | None,
    resume_run_id: str | None,
) -> RunStart:
    """Return what is known when the first question is put."""
    return RunStart(
        kind="eval",
        model=model,
        params={**params, **{plan.suite: asdict(_setting(plan)) for plan in plans}},
        tags={TAG_KEY_METRIC: f"eval/{plans[0].suite}"},
        parent_run_id=parent_run_id,
        resume_run_id=resume_run_id,
    )


def log_start(tracker: Tracker, plans: Sequence[BenchmarkPlan], origin: Provenance | None) -> None:
    """Say which model is measured on which data."""
    if origin is not None and origin.model_id is not None:
        tracker.use_model(origin.model_id)
    for plan in plans:
        reference = DatasetRef(plan.suite, plan.data_source, plan.data_hash, plan.question_count)
        tracker.log_dataset(reference, "evaluation")


def log_end(tracker: Tracker, report: EvalReport, folder: Path, origin: Provenance | None) -> None:
    """Keep the scores, and everything in the run's folder."""
    for suite in report.suites:
        tracker.log_metrics(
            benchmark_metrics(suite), model_id=None if origin is None else origin.model_id
        )
    tracker.log_artifact(folder, "eval")
    if report.failed:
        tracker.end("failed", f"{report.failed} questions have no answer")


@dataclass(frozen=True, slots=True)
class _Setting:
    mode: str
    shots: int
    prompt_hash: str
    data_hash: str
    questions: int


def _setting(plan: BenchmarkPlan) -> _Setting:
    return _Setting(
        plan.mode, plan.shots, plan.prompt_hash, plan.data_hash[:16], plan.question_count
    )


def benchmark_metrics(suite: BenchmarkScore) -> dict[str, float]:
    """Return the metrics of a suite: `eval/ceval`, `eval/ceval/stem`, `eval/ceval/law`, ...

    The suite's own number is the macro average where it has subjects, as OpenCompass reports it.
    """
    name, overall = f"eval/{suite.suite}", suite.overall
    values = {
        name: overall.accuracy if overall.macro is None else overall.macro,
        f"{name}/micro": overall.accuracy,
        f"{name}/stderr": overall.stderr,
        f"{name}/low": overall.low,
        f"{name}/high": overall.high,
        f"{name}/robust": overall.robust_accuracy,
        f"{name}/answered": float(overall.answered),
        f"{name}/failed": float(overall.failed),
    }
    for part in (*suite.categories, *(suite.subjects if len(suite.subjects) > 1 else ())):
        values[f"{name}/{part.name}"] = part.accuracy if part.macro is None else part.macro
    return {key: value for key, value in values.items() if value is not None}
