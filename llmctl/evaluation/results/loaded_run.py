"""What did a run find, with its questions and answers? Read back from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmctl.errors import ConfigError
from llmctl.evaluation.results.results_dir import (
    PROMPTS_FILE,
    REPORT_FILE,
    ResultsDir,
    read_json,
    read_json_lines,
)
from llmctl.types import AggregateScore, BenchmarkScore, EvalReport, EvalSample, SampleResult

SampleKey = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run that has ended."""

    report: EvalReport
    questions: Mapping[SampleKey, EvalSample]
    results: Mapping[SampleKey, SampleResult]
    """The latest of each question."""
    categories: Mapping[tuple[str, str], tuple[str, ...]]
    """Of each (suite, subject)."""

    @classmethod
    def read(cls, folder: ResultsDir) -> "LoadedRun":
        """Read a run.

        Raises:
            ConfigError: it has not ended, or its files cannot be understood.
        """
        told = read_json(folder.path / REPORT_FILE)
        if told is None:
            raise ConfigError(
                f"the run in {folder.path} has not ended",
                hint=f"llmctl eval ... --resume --output {folder.path} goes on with it",
            )
        try:
            report = _report(told)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder.path / REPORT_FILE} is no report: {error!r}") from error
        return cls(
            report,
            folder.questions(),
            {result.key: result for result in folder.results()},
            {
                (value["suite"], value["subject"]): tuple(value.get("categories", ()))
                for value in read_json_lines(folder.path / PROMPTS_FILE)
            },
        )


def _report(told: Mapping[str, Any]) -> EvalReport:
    known = _known(EvalReport, told)
    return EvalReport(**known | {"suites": tuple(_suite(suite) for suite in told["suites"])})


def _suite(told: Mapping[str, Any]) -> BenchmarkScore:
    parts = {name: _scores(told[name]) for name in ("categories", "subjects")}
    (overall,) = _scores([told["overall"]])
    made = _known(BenchmarkScore, told) | parts
    return BenchmarkScore(**made | {"overall": overall, "warnings": tuple(told["warnings"])})


def _scores(told: Sequence[Mapping[str, Any]]) -> tuple[AggregateScore, ...]:
    return tuple(AggregateScore(**_known(AggregateScore, one)) for one in told)


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a later release says besides."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
