"""What is asked of `llmctl eval`, and who looks on while it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from llmctl.config.settings import ConfigSource
from llmctl.types import BenchmarkPlan, EngineInfo, Progress, SampleResult


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What a person asks of `llmctl eval`."""

    options: ConfigSource
    """Settings by option or variable."""
    file: Path | None = None
    """YAML file with settings."""
    resume: bool = False
    track: bool = True
    tracking_uri: str | None = None
    parent_run_id: str | None = None
    """Run that this one belongs to; None: the run that taught the model, if we did."""


class EvalObserver(Protocol):
    """Who looks on while an exam is sat."""

    def begin(
        self, plans: Sequence[BenchmarkPlan], known: Sequence[SampleResult], folder: Path
    ) -> None:
        """Learn what will be asked, what an earlier run has answered of it, where answers go."""

    def loaded(self, info: EngineInfo) -> None:
        """Learn what sits the exam, where it is a model of ours."""

    def result(self, result: SampleResult) -> None:
        """Learn of an answer."""

    def note(self, text: str) -> None:
        """Learn what a person should know besides."""

    def progress(self, report: Progress) -> None:
        """Learn what goes on before the first question."""


class _Quiet:
    """Looks on and says nothing."""

    def begin(
        self, plans: Sequence[BenchmarkPlan], known: Sequence[SampleResult], folder: Path
    ) -> None:
        pass

    def loaded(self, info: EngineInfo) -> None:
        pass

    def result(self, result: SampleResult) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def progress(self, report: Progress) -> None:
        pass


SILENT_OBSERVER: Final[EvalObserver] = _Quiet()
