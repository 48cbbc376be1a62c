"""Service of `llmctl eval`: plans, loads, evaluates, scores and tracks."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmctl import __version__
from llmctl.config import EvalConfig
from llmctl.config.settings import build_config, read_config_file
from llmctl.engine.base import BaseEngine
from llmctl.errors import ConfigError, EngineStoppedError
from llmctl.evaluation.backend import Backend
from llmctl.evaluation.results.html_report import render_html
from llmctl.evaluation.results.results_dir import (
    PAGE_FILE,
    REPORT_FILE,
    RUN_FILE,
    TABLE_FILE,
    LoadedRun,
    ResultsDir,
    split_remaining,
)
from llmctl.evaluation.results.table import markdown_table
from llmctl.evaluation.runner import NativeBackend
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.evaluation.scoring.judge import Judge, require_judge
from llmctl.monitor import check_tracking_uri, open_tracker, tracked
from llmctl.services.evaluation.model_under_test import (
    model_identity,
    open_judge,
    open_model_under_test,
)
from llmctl.services.evaluation.plans import create_plans, output_dir
from llmctl.services.evaluation.request import EvalObserver, EvalRequest
from llmctl.services.evaluation.tracking import log_end, log_start, run_start
from llmctl.types import (
    BenchmarkPlan,
    EvalReport,
    ProgressCallback,
    SampleResult,
    ignore_progress,
)

__all__ = ["EvalObserver", "EvalRequest", "evaluate"]


def evaluate(
    request: EvalRequest, observer: EvalObserver, progress: ProgressCallback = ignore_progress
) -> EvalReport:
    """Evaluate a model on benchmarks.

    Each result is written to the results folder as soon as it exists. Samples that fail are counted
    in the report, and so are those that remain when the engine or the server stops.

    Raises:
        ConfigError: the settings, the data or the results folder cannot be used.
        LlmctlError: as `BaseEngine.load`.
    """
    layers = [read_config_file(request.file)] if request.file else []
    resolved = build_config(EvalConfig, *layers, request.options)
    config = resolved.values
    if request.resume and config.output is None:
        raise ConfigError("--resume needs the folder of the run", hint="--resume --output FOLDER")
    check_tracking_uri(request.tracking_uri, enabled=request.track)
    plans = create_plans(config, progress)
    folder = ResultsDir(output_dir(config))
    require_judge(plans, has_judge=config.judge_base_url is not None)
    with (
        open_judge(resolved, progress) as judge_model,
        open_model_under_test(resolved, observer, progress) as engine,
    ):
        judge = None if judge_model is None else Judge(judge_model)
        how = model_identity(engine)
        if judge_model is not None:
            how |= {"judge": f"{judge_model.info().model_id} at {judge_model.url}"}
        run = _Run(config, plans, folder, how, engine, observer, judge)
        content = run.content()
        answered = folder.begin(content, resume=request.resume)
        return run.tracked(content["config"], answered, request, progress)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, from its first sample to its report."""

    config: EvalConfig
    plans: Sequence[BenchmarkPlan]
    folder: ResultsDir
    how: Mapping[str, str]
    engine: BaseEngine
    observer: EvalObserver
    judge: Judge | None

    @property
    def model_name(self) -> str:
        """The model as the user named it."""
        if self.config.base_url is not None:
            return self.engine.info().model_id
        return self.config.adapter or self.config.model

    def content(self) -> dict[str, Any]:
        """Return the content of `run.json`."""
        gen_plans = [plan for plan in self.plans if plan.mode == "gen"]
        return {
            "identity": {
                **self.how,
                "backend": self.config.backend,
                **{f"mode of {plan.suite}": plan.mode for plan in self.plans},
                **{f"prompts of {plan.suite}": plan.prompt_hash for plan in self.plans},
                **{f"reply tokens of {plan.suite}": plan.max_new_tokens for plan in gen_plans},
            },
            "llmctl": __version__,
            "model": self.model_name,
            "config": asdict(replace(self.config, api_key=None, judge_api_key=None)),
            "suites": [
                asdict(plan.setup) | {"questions": plan.question_count} for plan in self.plans
            ],
        }

    def tracked(
        self,
        config: Mapping[str, object],
        answered: Mapping[str, SampleResult],
        request: EvalRequest,
        progress: ProgressCallback,
    ) -> EvalReport:
        """Evaluate within a tracked run.

        Args:
            config: the settings that are logged as parameters.
            answered: results of an earlier run, as `ResultsDir.begin` returns them.
            request: the request of the service.
            progress: receives the progress of the tracker and of the backend.
        """
        info = self.engine.info()
        parent = request.parent_run_id or info.training_run_id
        settings = {name: value for name, value in config.items() if value not in (None, ())}
        tracker = open_tracker(
            run_start(
                self.model_name, self.plans, {**self.how, **settings}, parent, self.folder.run_id
            ),
            tracking_uri=request.tracking_uri,
            enabled=request.track,
            warn=self.observer.note,
            progress=progress,
        )
        with tracked(tracker):
            self.folder.save_run_id(tracker.run_id)
            tracker.complete_ids(self.folder.path / RUN_FILE)
            log_start(tracker, self.plans, info.logged_model_id)
            report, results = self._evaluate(answered, progress)
            report = replace(report, run_id=tracker.run_id)
            self._write_report(report, results)
            log_end(tracker, report, self.folder.path, info.logged_model_id)
        return report

    def _evaluate(
        self, answered: Mapping[str, SampleResult], progress: ProgressCallback
    ) -> tuple[EvalReport, list[SampleResult]]:
        remaining, results = split_remaining(self.plans, answered)
        self.folder.write_prompts(self.plans)
        self.observer.begin(self.plans, list(results), self.folder.path)
        started = time.monotonic()
        complete = True
        with self.folder.append_results() as append:

            def save(result: SampleResult) -> None:
                append(result)
                results.append(result)
                self.observer.result(result)

            try:
                backend = create_backend(self.config, self.folder.path, self.judge)
                backend.run(remaining, self.engine, save, progress)
            except EngineStoppedError as error:
                complete = False
                self.observer.note(f"warning: {error}; the remaining samples count as failed")
        report = EvalReport(
            model=self.model_name,
            backend=self.config.backend,
            how=self.how,
            suites=tuple(
                score_benchmark(plan, [r for r in results if r.suite == plan.suite])
                for plan in self.plans
            ),
            seconds=time.monotonic() - started,
            folder=str(self.folder.path),
            complete=complete,
            too_long=sum(result.too_long for result in results),
        )
        return report, results

    def _write_report(self, report: EvalReport, results: Sequence[SampleResult]) -> None:
        self.folder.save_run_id(report.run_id)  # the tracker may assign it late
        self.folder.write(REPORT_FILE, asdict(report))
        self.folder.write_text(TABLE_FILE, markdown_table([report]))
        loaded = LoadedRun.from_plans(report, self.plans, results)
        self.folder.write_text(PAGE_FILE, render_html([loaded]))


def create_backend(config: EvalConfig, folder: Path, judge: Judge | None = None) -> Backend:
    """Return the backend of the configuration.

    Args:
        config: settings of the run.
        folder: results folder, where OpenCompass writes its own files.
        judge: the judge model of the native backend.
    """
    if config.backend == "native":
        return NativeBackend(config.batch_size, judge)
    from llmctl.evaluation.opencompass import OpenCompassBackend
    from llmctl.services.private_server import serve_privately

    return OpenCompassBackend(folder, serve_privately)
