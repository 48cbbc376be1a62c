"""What did a run find, with its questions and answers? Read back from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmctl.errors import ConfigError
from llmctl.evaluation.results.results_dir import PROMPTS, REPORT, RunFolder, read_json, read_lines
from llmctl.types import EvalReport, Question, QuestionResult, SubjectScore, SuiteScore

Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run that has ended."""

    report: EvalReport
    questions: Mapping[Key, Question]
    results: Mapping[Key, QuestionResult]
    """The latest of each question."""
    categories: Mapping[tuple[str, str], tuple[str, ...]]
    """Of each (suite, subject)."""

    @classmethod
    def read(cls, folder: RunFolder) -> "PastRun":
        """Read a run.

        Raises:
            ConfigError: it has not ended, or its files cannot be understood.
        """
        told = read_json(folder.path / REPORT)
        if told is None:
            raise ConfigError(
                f"the run in {folder.path} has not ended",
                hint=f"llmctl eval ... --resume --output {folder.path} goes on with it",
            )
        try:
            report = _report(told)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder.path / REPORT} is no report: {error!r}") from error
        return cls(
            report,
            folder.questions(),
            {result.key: result for result in folder.results()},
            {
                (value["suite"], value["subject"]): tuple(value.get("categories", ()))
                for value in read_lines(folder.path / PROMPTS)
            },
        )


def _report(told: Mapping[str, Any]) -> EvalReport:
    known = _known(EvalReport, told)
    return EvalReport(**known | {"suites": tuple(_suite(suite) for suite in told["suites"])})


def _suite(told: Mapping[str, Any]) -> SuiteScore:
    parts = {name: _scores(told[name]) for name in ("categories", "subjects")}
    (overall,) = _scores([told["overall"]])
    made = _known(SuiteScore, told) | parts
    return SuiteScore(**made | {"overall": overall, "warnings": tuple(told["warnings"])})


def _scores(told: Sequence[Mapping[str, Any]]) -> tuple[SubjectScore, ...]:
    return tuple(SubjectScore(**_known(SubjectScore, one)) for one in told)


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a later release says besides."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
