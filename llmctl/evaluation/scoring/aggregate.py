"""Aggregation of sample results into scores with confidence intervals and warnings."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from llmctl.evaluation.scoring.stats import standard_error, wilson
from llmctl.types import (
    AggregateScore,
    BenchmarkPlan,
    BenchmarkScore,
    SampleKey,
    SampleResult,
    SubjectPlan,
)

_DOMINANT_SHARE = 0.8
"""Share of one label in the predictions above which a position bias is likely."""
_MIN_ANSWERS = 20
"""Answers needed for such a warning."""

Results = Mapping[SampleKey, SampleResult]


def score_benchmark(plan: BenchmarkPlan, results: Iterable[SampleResult]) -> BenchmarkScore:
    """Aggregate the results of one benchmark.

    Args:
        plan: all samples of the run; a sample without a result counts as failed.
        results: of this benchmark; the last result of a sample counts.
    """
    latest = {result.key: result for result in results}
    categories: dict[str, list[SubjectPlan]] = {}
    for subject in plan.subjects:
        for category in subject.categories:
            categories.setdefault(category, []).append(subject)
    answered = [result for result in latest.values() if not result.error]
    counts = Counter(result.prediction for result in answered if result.prediction)
    labels = {
        label
        for subject in plan.subjects
        for sample in subject.questions
        for label in sample.labels
    }
    overall = _aggregate(plan.suite, plan.suite, plan.subjects, latest)
    label_counts = {label: counts[label] for label in sorted(labels)}
    return BenchmarkScore(
        **asdict(plan.setup),
        overall=overall,
        categories=tuple(
            _aggregate(name, name, members, latest) for name, members in categories.items()
        ),
        subjects=tuple(_aggregate(s.subject, s.title, [s], latest) for s in plan.subjects),
        letters=label_counts,
        warnings=tuple(_warnings(plan, overall, label_counts)),
        tokens=sum(result.tokens for result in answered),
        naive_tokens=sum(result.naive_tokens for result in answered),
    )


def _aggregate(
    name: str, title: str, subjects: Sequence[SubjectPlan], results: Results
) -> AggregateScore:
    keys = [sample.key for subject in subjects for sample in subject.questions]
    answered = _answered(keys, results)
    count, correct = len(answered), sum(result.correct for result in answered)
    low, high = wilson(correct, count)
    extracted = [result for result in answered if result.robust is not None]
    return AggregateScore(
        name=name,
        title=title,
        total=len(keys),
        answered=count,
        correct=correct,
        failed=len(keys) - count,
        unparsed=sum(result.robust == "" for result in extracted),
        truncated=sum(result.truncated for result in answered),
        accuracy=correct / count if count else None,
        stderr=standard_error(correct, count),
        low=low if count else None,
        high=high if count else None,
        macro=_macro_average(subjects, results) if len(subjects) > 1 else None,
        robust_accuracy=(
            sum(bool(r.robust_correct) for r in extracted) / count if extracted else None
        ),
    )


def _answered(keys: Iterable[SampleKey], results: Results) -> list[SampleResult]:
    return [result for key in keys if (result := results.get(key)) and not result.error]


def _macro_average(subjects: Sequence[SubjectPlan], results: Results) -> float | None:
    """Return the mean accuracy of the subjects that have an answered sample."""
    accuracies = []
    for subject in subjects:
        answered = _answered((sample.key for sample in subject.questions), results)
        if answered:
            accuracies.append(sum(result.correct for result in answered) / len(answered))
    return sum(accuracies) / len(accuracies) if accuracies else None


def _warnings(
    plan: BenchmarkPlan, overall: AggregateScore, label_counts: Mapping[str, int]
) -> Iterable[str]:
    """Yield the reasons to doubt a benchmark's score."""
    if overall.failed:
        yield f"{overall.failed} of {overall.total} samples failed and are left out"
    if overall.truncated:
        yield (
            f"{overall.truncated} replies reached the token limit"
            if plan.mode == "gen"
            else f"{overall.truncated} prompts were too long and lost examples"
        )
    if overall.unparsed:
        yield f"no answer was found in {overall.unparsed} of {overall.answered} replies"
    if overall.answered < _MIN_ANSWERS:
        return
    if not overall.correct:
        yield "all answers are wrong: check some with `llmctl eval show`"
    assert overall.low is not None
    assert overall.high is not None
    if plan.chance is not None and overall.low <= plan.chance <= overall.high:
        yield f"not better than random guessing, which gets {plan.chance:.0%} right"
    strict, robust = overall.accuracy, overall.robust_accuracy
    if strict is not None and robust is not None and abs(strict - robust) > 0.05:
        yield f"robust extraction scores {robust:.2%}, strict extraction {strict:.2%}"
    predictions = sum(label_counts.values())
    label = max(label_counts, key=label_counts.__getitem__, default="")
    if predictions >= _MIN_ANSWERS and label_counts[label] > _DOMINANT_SHARE * predictions:
        hint = "; --mode logprob_norm scores the texts instead" if plan.mode == "ppl" else ""
        yield f"{label} is {label_counts[label]} of {predictions} answers: position bias{hint}"
