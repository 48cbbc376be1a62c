"""Request and observer of an evaluation run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.config.settings import ConfigSource
from llmctl.types import BenchmarkPlan, EngineInfo, Progress, SampleResult


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """Arguments of `llmctl eval`."""

    options: ConfigSource
    """Settings from options and environment variables."""
    file: Path | None = None
    """YAML file with settings."""
    resume: bool = False
    track: bool = True
    tracking_uri: str | None = None
    parent_run_id: str | None = None
    """Parent of the tracked run; None: the fine-tuning run of the model, if llmctl trained it."""


class EvalObserver:
    """Receives the events of a run, for display. This class shows nothing."""

    def begin(
        self, plans: Sequence[BenchmarkPlan], known: Sequence[SampleResult], folder: Path
    ) -> None:
        """The evaluation starts: its plans, the results of an earlier run, the results folder."""

    def loaded(self, info: EngineInfo) -> None:
        """The local model is loaded."""

    def result(self, result: SampleResult) -> None:
        """A sample was evaluated."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def progress(self, report: Progress) -> None:
        """Progress of a step before the first sample, such as a download."""
