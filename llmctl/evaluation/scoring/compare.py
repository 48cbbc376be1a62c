"""Do two runs differ by more than chance? Paired: only questions that both answered count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

from llmctl.evaluation.scoring.stats import holm, mcnemar, paired_bootstrap
from llmctl.types import BenchmarkScore, PairedComparison, SampleResult

ResultPair = tuple[SampleResult, SampleResult]


@dataclass(frozen=True, slots=True)
class BenchmarkComparison:
    """What two runs have in common, and in what they differ."""

    comparisons: tuple[PairedComparison, ...]
    """Each suite, then its categories and subjects with p-values corrected by Holm's method."""
    flipped: tuple[ResultPair, ...]
    """Questions that one of the runs got right and the other wrong."""
    notes: tuple[str, ...]
    """What stands against comparing them."""


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """How a suite's numbers were made, besides the model."""

    mode: str
    shots: int
    prompt_hash: str
    data_hash: str

    @classmethod
    def of(cls, suite: BenchmarkScore) -> Self:
        return cls(suite.mode, suite.shots, suite.prompt_hash, suite.data_hash)


def comparability_warnings(
    first: Mapping[str, ScoreConfig], second: Mapping[str, ScoreConfig]
) -> list[str]:
    """Say what stands against comparing two runs: each way in which a suite was made otherwise."""
    return [
        f"{name} was made with {field.name} {str(getattr(first[name], field.name))[:16]} and "
        f"{str(getattr(second[name], field.name))[:16]}: the difference is not the model's alone"
        for name in first
        if name in second
        for field in fields(ScoreConfig)
        if getattr(first[name], field.name) != getattr(second[name], field.name)
    ]


def paired_results(
    first: Sequence[SampleResult], second: Sequence[SampleResult]
) -> list[ResultPair]:
    """Return the questions that both runs answered, by suite, subject and place."""
    known = {result.key: result for result in second if not result.error}
    answered = {result.key: result for result in first if not result.error}
    return [(a, known[key]) for key, a in sorted(answered.items()) if key in known]


def compare_results(
    pairs: Sequence[ResultPair], categories: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[list[PairedComparison], list[ResultPair]]:
    """Compare suite by suite, category by category, subject by subject.

    Args:
        categories: of each (suite, subject).
    """
    found = []
    for suite in dict.fromkeys(a.suite for a, _ in pairs):
        own = [pair for pair in pairs if pair[0].suite == suite]
        found.append(_compared(suite, suite, own))
        scopes: dict[str, list[ResultPair]] = {}
        for pair in own:
            for category in categories.get((suite, pair[0].subject), ()):
                scopes.setdefault(category, []).append(pair)
        subjects: dict[str, list[ResultPair]] = {}
        for pair in own:
            subjects.setdefault(pair[0].subject, []).append(pair)
        for group in (scopes, subjects if len(subjects) > 1 else {}):
            parts = [_compared(suite, name, several) for name, several in group.items()]
            found += _corrected(parts)
    return found, [(a, b) for a, b in pairs if a.correct != b.correct]


def _compared(suite: str, scope: str, pairs: Sequence[ResultPair]) -> PairedComparison:
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


def _corrected(parts: Sequence[PairedComparison]) -> list[PairedComparison]:
    values = holm([part.p_value for part in parts])
    return [replace(part, p_value=value) for part, value in zip(parts, values, strict=True)]
