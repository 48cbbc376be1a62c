"""Tracking of an evaluation run: parameters, datasets and metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmctl.monitor import Tracker
from llmctl.types import (
    TAG_KEY_METRIC,
    BenchmarkPlan,
    BenchmarkScore,
    DatasetRef,
    EvalReport,
    RunStart,
)

_DIFFERENCES = ("difference", "difference_low", "difference_high", "difference_p")
"""Figures of a benchmark before and after training, which `finetune --eval` adds."""


def run_start(
    model: str,
    plans: Sequence[BenchmarkPlan],
    params: Mapping[str, object],
    parent_run_id: str | None,
    resume_run_id: str | None,
) -> RunStart:
    """Return the start of the tracked run, with the setup of each benchmark as parameters."""
    setups = {
        plan.suite if plan.suite not in params else f"benchmark/{plan.suite}": {
            "mode": plan.mode,
            "shots": plan.shots,
            "prompt_hash": plan.prompt_hash,
            "data_hash": plan.data_hash[:16],
            "questions": plan.question_count,
        }
        for plan in plans
    }
    return RunStart(
        kind="eval",
        model=model,
        params={**params, **setups},
        tags={TAG_KEY_METRIC: metric_name(plans[0].suite)},
        parent_run_id=parent_run_id,
        resume_run_id=resume_run_id,
    )


def log_start(tracker: Tracker, plans: Sequence[BenchmarkPlan], model_id: str | None) -> None:
    """Log the evaluated model and the datasets.

    Args:
        model_id: of the LoggedModel of the weights.
    """
    if model_id is not None:
        tracker.use_model(model_id)
    for plan in plans:
        reference = DatasetRef(plan.suite, plan.data_source, plan.data_hash, plan.question_count)
        tracker.log_dataset(reference, "evaluation")


def log_end(tracker: Tracker, report: EvalReport, folder: Path, model_id: str | None) -> None:
    """Log the scores, and the results folder as an artifact."""
    for score in report.suites:
        tracker.log_metrics(benchmark_metrics(score), model_id=model_id)
    tracker.log_artifact(folder, "eval")
    if report.failed:
        tracker.end("failed", f"{report.failed} samples failed")


def metric_name(suite: str) -> str:
    """Return the metric of a benchmark. `eval/loss` is the loss on held-out rows."""
    return f"eval/benchmark/{suite}" if suite == "loss" else f"eval/{suite}"


def benchmark_metrics(score: BenchmarkScore) -> dict[str, float]:
    """Return the metrics of a benchmark: `eval/ceval`, `eval/ceval/stem`, `eval/ceval/law`, ...

    `eval/ceval` is the macro average if the benchmark has subjects, as OpenCompass reports it. A
    category or subject whose name is taken becomes `eval/ceval/category/...` or `.../subject/...`.
    """
    name, overall = metric_name(score.suite), score.overall
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
    for kind, parts in (("category", score.categories), ("subject", score.subjects)):
        for part in parts if kind == "category" or len(parts) > 1 else ():
            key = f"{name}/{part.name}"
            # A subject may be called `low`, or have the name of a category.
            if key in values or part.name in _DIFFERENCES:
                key = f"{name}/{kind}/{part.name}"
            values[key] = part.accuracy if part.macro is None else part.macro
    return {key: value for key, value in values.items() if value is not None}
