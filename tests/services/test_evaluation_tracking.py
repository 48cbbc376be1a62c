"""Metrics and parameters of an evaluation run keep their names apart."""

from typing import Any

from llmctl.services.evaluation.tracking import benchmark_metrics, metric_name, run_start
from llmctl.types import AggregateScore, BenchmarkPlan, BenchmarkScore

SETUP: dict[str, Any] = {
    "mode": "ppl", "shots": 0, "prompt_hash": "p", "data_hash": "", "data_source": "",
    "chance": None,
}  # fmt: skip


def aggregate(name: str, accuracy: float) -> AggregateScore:
    return AggregateScore(
        name, name, 10, 10, int(10 * accuracy), 0, 0, 0, accuracy, 0.1, accuracy - 0.1, 1.0
    )


def test_subjects_with_the_name_of_a_figure_or_a_category_do_not_overwrite_it() -> None:
    subjects = [aggregate(name, 0.5) for name in ("low", "failed", "stem", "law", "difference")]
    score = BenchmarkScore(
        suite="exam",
        **SETUP,
        overall=aggregate("exam", 0.9),
        categories=(aggregate("stem", 0.7), aggregate("high", 0.6)),
        subjects=tuple(subjects),
        letters={},
    )
    metrics = benchmark_metrics(score)
    expected = {
        "eval/exam": 0.9,
        "eval/exam/low": 0.8,
        "eval/exam/high": 1.0,
        "eval/exam/failed": 0.0,
        "eval/exam/stem": 0.7,
        "eval/exam/law": 0.5,
        "eval/exam/category/high": 0.6,
        "eval/exam/subject/low": 0.5,
        "eval/exam/subject/failed": 0.5,
        "eval/exam/subject/stem": 0.5,
        "eval/exam/subject/difference": 0.5,
    }
    assert {name: round(metrics[name], 6) for name in expected} == expected


def test_a_benchmark_called_loss_does_not_overwrite_the_loss_of_the_training() -> None:
    assert (metric_name("exam"), metric_name("loss")) == ("eval/exam", "eval/benchmark/loss")


def test_a_benchmark_with_the_name_of_a_setting_does_not_overwrite_it() -> None:
    plan = BenchmarkPlan(suite="seed", **SETUP, max_new_tokens=0, subjects=())
    params = run_start("tiny", [plan], {"seed": 42}, None, None).params
    assert params["seed"] == 42
    assert "benchmark/seed" in params
