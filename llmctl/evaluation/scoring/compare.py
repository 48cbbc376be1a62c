"""Paired comparison of two runs over the samples that both answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.evaluation.scoring.stats import holm, mcnemar, paired_bootstrap
from llmctl.types import BenchmarkSetup, PairedComparison, SampleResult

ResultPair = tuple[SampleResult, SampleResult]

_COMPARED_SETTINGS = ("mode", "shots", "prompt_hash", "data_hash")


@dataclass(frozen=True, slots=True)
class BenchmarkComparison:
    """Differences between two runs."""

    comparisons: tuple[PairedComparison, ...]
    """Each benchmark, then its categories and subjects with p-values corrected by Holm's method."""
    flipped: tuple[ResultPair, ...]
    """Samples that one run answered correctly and the other did not."""
    notes: tuple[str, ...]
    """Reasons why the scores are not comparable."""


def comparability_warnings(
    first: Sequence[BenchmarkSetup], second: Sequence[BenchmarkSetup]
) -> list[str]:
    """Return a warning for each setting in which the runs of a benchmark differ."""
    others = {setup.suite: setup for setup in second}
    return [
        f"{setup.suite} has {name} {str(getattr(setup, name))[:16]} in the first run and "
        f"{str(getattr(other, name))[:16]} in the second: the scores are not comparable"
        for setup in first
        if (other := others.get(setup.suite)) is not None
        for name in _COMPARED_SETTINGS
        if getattr(setup, name) != getattr(other, name)
    ]


def paired_results(
    first: Sequence[SampleResult], second: Sequence[SampleResult]
) -> list[ResultPair]:
    """Return the samples that both runs answered, by benchmark, subject and index."""
    others = {result.key: result for result in second if not result.error}
    answered = {result.key: result for result in first if not result.error}
    return [(a, others[key]) for key, a in sorted(answered.items()) if key in others]


def compare_results(
    pairs: Sequence[ResultPair], categories: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[list[PairedComparison], list[ResultPair]]:
    """Compare by benchmark, category and subject.

    Args:
        pairs: as `paired_results` returns them.
        categories: by (benchmark, subject).

    Returns:
        The comparisons, and the pairs of which only one result is correct.
    """
    comparisons = []
    for suite in dict.fromkeys(a.suite for a, _ in pairs):
        of_suite = [pair for pair in pairs if pair[0].suite == suite]
        comparisons.append(_compare(suite, suite, of_suite))
        by_category: dict[str, list[ResultPair]] = {}
        by_subject: dict[str, list[ResultPair]] = {}
        for pair in of_suite:
            subject = pair[0].subject
            by_subject.setdefault(subject, []).append(pair)
            for category in categories.get((suite, subject), ()):
                by_category.setdefault(category, []).append(pair)
        for groups in (by_category, by_subject if len(by_subject) > 1 else {}):
            parts = [_compare(suite, name, members) for name, members in groups.items()]
            corrected = holm([part.p_value for part in parts])
            comparisons += [
                replace(part, p_value=p) for part, p in zip(parts, corrected, strict=True)
            ]
    return comparisons, [(a, b) for a, b in pairs if a.correct != b.correct]


def _compare(suite: str, scope: str, pairs: Sequence[ResultPair]) -> PairedComparison:
    differences = [b.correct - a.correct for a, b in pairs]
    low, high = paired_bootstrap(differences)
    gained, lost = differences.count(1), differences.count(-1)
    return PairedComparison(
        suite=suite,
        scope=scope,
        questions=len(pairs),
        first=sum(a.correct for a, _ in pairs) / len(pairs),
        second=sum(b.correct for _, b in pairs) / len(pairs),
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
    )
