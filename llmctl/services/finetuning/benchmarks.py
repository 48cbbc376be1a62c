"""Benchmarks before and after a training (`llmctl finetune --eval`), and their comparison."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from llmctl.config import EvalConfig, TrainConfig
from llmctl.config.settings import ConfigSource, Setting, build_config
from llmctl.errors import ConfigError, LlmctlError
from llmctl.evaluation.results.html_report import render_html
from llmctl.evaluation.results.results_dir import PAGE_FILE, REPORT_FILE, LoadedRun, ResultsDir
from llmctl.monitor import Tracker
from llmctl.monitor.base import Terminated
from llmctl.services.evaluation.plans import create_plans
from llmctl.services.evaluation.request import EvalObserver, EvalRequest
from llmctl.services.evaluation.results import compare_evaluations
from llmctl.services.evaluation.run import evaluate
from llmctl.services.evaluation.tracking import benchmark_metrics, metric_name
from llmctl.types import (
    EvalReport,
    PairedComparison,
    TrainListener,
    TrainNote,
    TrainReport,
)

FOLDER: Final = "benchmarks"
"""Folder in the training's output folder, with `before`, `after` and an HTML report of both."""
_EARLIER_FOLDER: Final = "exams"
"""Its name in earlier releases, which is kept if it exists."""


class TrainingBenchmarks:
    """The benchmarks of one training. Without `--eval` it does nothing."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        listener: TrainListener,
        observer: EvalObserver,
        tracking_uri: str | None,
        *,
        processes: int = 1,
    ) -> None:
        """Check that the benchmarks can run.

        Args:
            listener: receives notes about starts and problems.
            observer: receives the events of the evaluations.
            processes: number of processes that train together.

        Raises:
            ConfigError: a benchmark or its data does not exist, or several processes train.
        """
        self._config = config
        earlier = folder / _EARLIER_FOLDER
        self._folder = earlier if earlier.is_dir() else folder / FOLDER
        self._listener = listener
        self._observer = observer
        self._tracking_uri = tracking_uri
        if config.eval and processes > 1:
            raise ConfigError(
                f"--eval needs a single process, and {processes} train together",
                hint="run `llmctl eval --model` before and after, then `llmctl eval compare`",
            )
        if config.eval:
            create_plans(
                build_config(EvalConfig, self._eval_settings(config.model)).values,
                observer.progress,
            )

    def before(self, tracker: Tracker) -> None:
        """Evaluate the model before training; an interrupted evaluation is resumed."""
        if self._config.eval and not (self._folder / "before" / REPORT_FILE).is_file():
            report = self._evaluate("before", self._config.model, tracker)
            _record(tracker, report, 0)

    def after(self, tracker: Tracker, trained: TrainReport) -> TrainReport:
        """Evaluate the trained model, and compare. An error does not affect the training result.

        Returns:
            The report with the comparisons.
        """
        if not self._config.eval:
            return trained
        gc.collect()  # frees the weights in training
        try:
            report = self._evaluate("after", trained.output, tracker)
        except LlmctlError as error:
            self._listener(TrainNote(f"the benchmarks after training failed: {error}"))
            return trained
        _record(tracker, report, trained.steps)
        folders = [self._folder / "before", self._folder / "after"]
        comparison = compare_evaluations(*map(str, folders))
        overall = [one for one in comparison.comparisons if one.scope == one.suite]
        _record_differences(tracker, overall)
        runs = [LoadedRun.read(ResultsDir(folder)) for folder in folders]
        ResultsDir(self._folder).write_text(PAGE_FILE, render_html(runs))
        tracker.log_artifact(self._folder / PAGE_FILE, FOLDER)
        for note in comparison.notes:
            self._listener(TrainNote(note))
        return replace(trained, exams=tuple(overall))

    def _evaluate(self, name: str, model: str, tracker: Tracker) -> EvalReport:
        output = Setting(str(self._folder / name), "--output")
        request = EvalRequest(
            options={**self._eval_settings(model), "output": output},
            resume=True,
            track=tracker.run_id is not None,
            tracking_uri=self._tracking_uri,
            parent_run_id=tracker.run_id,
        )
        try:
            self._listener(TrainNote(f"benchmarks {name} training: {', '.join(self._config.eval)}"))
            report = evaluate(request, self._observer, self._observer.progress)
        except (KeyboardInterrupt, Terminated):
            self._listener(
                TrainNote(
                    f"stopped in the benchmarks {name} training; continue with "
                    f"`llmctl finetune --resume --output {self._folder.parent}`"
                )
            )
            raise
        if report.failed:
            self._listener(TrainNote(f"benchmarks {name} training: {report.failed} samples failed"))
        return report

    def _eval_settings(self, model: str) -> ConfigSource:
        """Return the settings of an evaluation; dtype, device and quant are the training's."""
        config = self._config
        settings = {
            "dataset": config.eval,
            "model": model,
            "limit": config.eval_limit,
            "mode": config.eval_mode,
            "data_dir": config.eval_dir,
            "quant": config.weights_quant,
            **{name: value for name, value in asdict(config).items() if name in _SHARED_SETTINGS},
        }
        return {name: Setting(value, "--eval") for name, value in settings.items()}


_SHARED_SETTINGS: Final = ("device", "dtype", "chat_template", "trust_remote_code", "allow_pickle")


def _record(tracker: Tracker, report: EvalReport, step: int) -> None:
    for suite in report.suites:
        tracker.log_metrics(benchmark_metrics(suite), step=step)


def _record_differences(tracker: Tracker, comparisons: Sequence[PairedComparison]) -> None:
    """Log the difference of each benchmark, as a fraction of 1, its interval and its p-value."""
    for one in comparisons:
        name = metric_name(one.suite)
        tracker.log_metrics(
            {
                f"{name}/difference": one.second - one.first,
                f"{name}/difference_low": one.low,
                f"{name}/difference_high": one.high,
                f"{name}/difference_p": one.p_value,
            }
        )
