"""The exams of `llmctl finetune --eval`: sat before and after, and what the difference is worth."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from llmctl.config import EvalConfig, TrainConfig
from llmctl.config.settings import ConfigSource, Setting, build_config
from llmctl.errors import ConfigError, LlmctlError
from llmctl.evaluation.results.html_report import render_html
from llmctl.evaluation.results.loaded_run import LoadedRun
from llmctl.evaluation.results.results_dir import PAGE_FILE, REPORT_FILE, ResultsDir
from llmctl.monitor import Tracker
from llmctl.monitor.base import Terminated
from llmctl.services.evaluation.plans import create_plans
from llmctl.services.evaluation.request import EvalObserver, EvalRequest
from llmctl.services.evaluation.results import compare_evaluations
from llmctl.services.evaluation.run import evaluate
from llmctl.services.evaluation.tracking import benchmark_metrics
from llmctl.types import (
    EvalReport,
    PairedComparison,
    TrainListener,
    TrainNote,
    TrainReport,
)

FOLDER: Final = "exams"
"""Below the training's own: `before`, `after`, and a page with both."""


class TrainingBenchmarks:
    """The exams around one training. Without any it does nothing."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        listen: TrainListener,
        listener: EvalObserver,
        tracking_uri: str | None,
        *,
        processes: int = 1,
    ) -> None:
        """Look whether they can be sat.

        Args:
            listen: told in a note when one begins, and of what goes wrong.
            listener: told of all that happens within one.

        Raises:
            ConfigError: there is no such exam, its data cannot be had, or several processes learn.
        """
        self._config = config
        self._folder = folder / FOLDER
        self._listen = listen
        self._listener = listener
        self._tracking_uri = tracking_uri
        if config.eval and processes > 1:
            raise ConfigError(
                f"--eval is for one process, and {processes} learn together",
                hint="`llmctl eval --model` before and after, then `llmctl eval compare`",
            )
        if config.eval:
            create_plans(
                build_config(EvalConfig, self._chosen(config.model)).values, listener.progress
            )

    def before(self, tracker: Tracker) -> None:
        """Sit the model that is about to be taught. An earlier, broken off run is gone on with."""
        if self._config.eval and not (self._folder / "before" / REPORT_FILE).is_file():
            report = self._sit("before", self._config.model, tracker)
            _record(tracker, report, 0)

    def after(self, tracker: Tracker, taught: TrainReport) -> TrainReport:
        """Sit what was taught, and compare. What fails here leaves the result of the training."""
        if not self._config.eval:
            return taught
        gc.collect()  # the weights that were taught
        try:
            report = self._sit("after", taught.output, tracker)
        except LlmctlError as error:
            self._listen(TrainNote(f"the exams could not be sat afterwards: {error}"))
            return taught
        _record(tracker, report, taught.steps)
        folders = [self._folder / "before", self._folder / "after"]
        found = compare_evaluations(*map(str, folders))
        whole = [one for one in found.comparisons if one.scope == one.suite]
        _record_difference(tracker, whole)
        both = [LoadedRun.read(ResultsDir(folder)) for folder in folders]
        ResultsDir(self._folder).write_text(PAGE_FILE, render_html(both))
        tracker.log_artifact(self._folder / PAGE_FILE, FOLDER)
        for note in found.notes:
            self._listen(TrainNote(note))
        return replace(taught, exams=tuple(whole))

    def _sit(self, name: str, model: str, tracker: Tracker) -> EvalReport:
        output = Setting(str(self._folder / name), "--output")
        request = EvalRequest(
            options={**self._chosen(model), "output": output},
            resume=True,
            track=tracker.run_id is not None,
            tracking_uri=self._tracking_uri,
            parent_run_id=tracker.run_id,
        )
        try:
            self._listen(TrainNote(f"exam {name} the training: {', '.join(self._config.eval)}"))
            report = evaluate(request, self._listener, self._listener.progress)
        except (KeyboardInterrupt, Terminated):
            self._listen(
                TrainNote(
                    f"stopped in the exam {name} the training; "
                    f"`llmctl finetune --resume --output {self._folder.parent}` goes on"
                )
            )
            raise
        if report.failed:
            self._listen(TrainNote(f"{name}: {report.failed} questions have no answer"))
        return report

    def _chosen(self, model: str) -> ConfigSource:
        """Return the settings of an evaluation: weights, dtype and device as they are taught."""
        config = self._config
        settings = {
            "dataset": config.eval,
            "model": model,
            "limit": config.eval_limit,
            "mode": config.eval_mode,
            "data_dir": config.eval_dir,
            "quant": config.weights_quant,
            **{name: value for name, value in asdict(config).items() if name in _SHARED},
        }
        return {name: Setting(value, "--eval") for name, value in settings.items()}


_SHARED: Final = ("device", "dtype", "chat_template", "trust_remote_code", "allow_pickle")


def _record(tracker: Tracker, report: EvalReport, step: int) -> None:
    for suite in report.suites:
        tracker.log_metrics(benchmark_metrics(suite), step=step)


def _record_difference(tracker: Tracker, found: Sequence[PairedComparison]) -> None:
    """Keep how much better each exam went, in shares of 1, and how sure that is."""
    for one in found:
        tracker.log_metrics(
            {
                f"eval/{one.suite}/difference": one.second - one.first,
                f"eval/{one.suite}/difference_low": one.low,
                f"eval/{one.suite}/difference_high": one.high,
                f"eval/{one.suite}/difference_p": one.p_value,
            }
        )
