"""A finished run with its scores, samples and results, for reports."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmctl.evaluation.results.results_dir import Categories, ResultsDir
from llmctl.types import BenchmarkPlan, EvalReport, EvalSample, SampleKey, SampleResult


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A finished run."""

    report: EvalReport
    samples: Mapping[SampleKey, EvalSample]
    results: Mapping[SampleKey, SampleResult]
    """The last result of each sample."""
    categories: Categories

    @classmethod
    def read(cls, folder: ResultsDir) -> "LoadedRun":
        """Read a run from its folder.

        Raises:
            ConfigError: the run has not ended, or its files are invalid.
        """
        report, prompts = folder.report(), folder.prompts()
        results = {result.key: result for result in folder.results()}
        return cls(report, prompts.samples, results, prompts.categories)

    @classmethod
    def from_plans(
        cls, report: EvalReport, plans: Sequence[BenchmarkPlan], results: Iterable[SampleResult]
    ) -> "LoadedRun":
        """Return a run that has just ended."""
        subjects = [subject for plan in plans for subject in plan.subjects]
        return cls(
            report,
            {sample.key: sample for subject in subjects for sample in subject.questions},
            {result.key: result for result in results},
            {(subject.suite, subject.subject): subject.categories for subject in subjects},
        )
