"""The story of `llmctl eval`: find the exams, load the model, ask, add up, remember."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmctl import __version__
from llmctl.config import EvalConfig
from llmctl.config.settings import build_config, read_config_file
from llmctl.errors import ConfigError, EngineStoppedError
from llmctl.evaluation.backend import Backend, ModelUnderTest, ServerModel
from llmctl.evaluation.results.html_report import render_html
from llmctl.evaluation.results.loaded_run import LoadedRun
from llmctl.evaluation.results.results_dir import (
    PAGE_FILE,
    REPORT_FILE,
    TABLE_FILE,
    ResultsDir,
    split_remaining,
)
from llmctl.evaluation.results.table import markdown_table
from llmctl.evaluation.runner import NativeBackend
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.evaluation.scoring.judge import Judge, require_judge
from llmctl.monitor import open_tracker, tracked
from llmctl.services.evaluation.model_under_test import (
    create_judge,
    model_identity,
    open_model_under_test,
    provenance_of,
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
    request: EvalRequest, listener: EvalObserver, progress: ProgressCallback = ignore_progress
) -> EvalReport:
    """Sit a model through exams.

    Every answer is on the disk as soon as it is there. Questions that fail are counted in the
    report; so are those that were left when the engine or the server died.

    Raises:
        ConfigError: settings, data, or a folder of results cannot be used.
        ModelNotFoundError, ModelLoadError, OutOfMemoryError: as `BaseEngine.load`.
    """
    layers = [read_config_file(request.file)] if request.file else []
    config = build_config(EvalConfig, *layers, request.options).values
    if request.resume and config.output is None:
        raise ConfigError("--resume needs the folder of the run", hint="--resume --output FOLDER")
    plans = create_plans(config, progress)
    folder = ResultsDir(output_dir(config))
    judge = create_judge(config)
    require_judge(judge, plans)
    with open_model_under_test(config, listener, progress) as candidate:
        how = model_identity(candidate)
        if judge is not None:
            how |= {"judge": f"{judge.place.model} at {judge.place.base_url}"}
        run = _Run(config, plans, folder, how, candidate, listener, judge)
        known = folder.begin(run.identity(), resume=request.resume)
        return run.tracked(known, request, progress)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, from its first question to its report."""

    config: EvalConfig
    plans: Sequence[BenchmarkPlan]
    folder: ResultsDir
    how: Mapping[str, str]
    candidate: ModelUnderTest
    listener: EvalObserver
    judge: Judge | None

    @property
    def model(self) -> str:
        """The candidate as a person knows it."""
        if isinstance(self.candidate, ServerModel):
            return self.candidate.model
        return self.config.adapter or self.config.model

    def identity(self) -> dict[str, Any]:
        """Return what is kept as `run.json`."""
        return {
            "identity": {
                **self.how,
                "backend": self.config.backend,
                **{f"mode of {plan.suite}": plan.mode for plan in self.plans},
                **{f"prompts of {plan.suite}": plan.prompt_hash for plan in self.plans},
                **{
                    f"reply tokens of {plan.suite}": plan.max_new_tokens
                    for plan in self.plans
                    if plan.mode == "gen"
                },
            },
            "llmctl": __version__,
            "model": self.model,
            "config": asdict(replace(self.config, api_key=None, judge_api_key=None)),
            "suites": [
                {
                    "suite": plan.suite,
                    "mode": plan.mode,
                    "shots": plan.shots,
                    "prompt_hash": plan.prompt_hash,
                    "data_hash": plan.data_hash,
                    "data_source": plan.data_source,
                    "chance": plan.chance,
                    "questions": plan.question_count,
                }
                for plan in self.plans
            ],
        }

    def tracked(
        self,
        known: Mapping[str, SampleResult],
        request: EvalRequest,
        progress: ProgressCallback,
    ) -> EvalReport:
        """Ask, add up, and keep a record of it."""
        origin = provenance_of(self.config, self.candidate)
        parent = request.parent_run_id or (None if origin is None else origin.run_id)
        chosen = {k: v for k, v in self.identity()["config"].items() if v not in (None, ())}
        params = {**self.how, **chosen}
        tracker = open_tracker(
            run_start(self.model, self.plans, params, parent, self.folder.run_id),
            tracking_uri=request.tracking_uri,
            enabled=request.track,
            warn=self.listener.note,
            progress=progress,
        )
        with tracked(tracker):
            self.folder.keep_run_id(tracker.run_id)
            log_start(tracker, self.plans, origin)
            report = replace(self._ask(known, progress), run_id=tracker.run_id)
            self._keep(report)
            log_end(tracker, report, self.folder.path, origin)
        return report

    def _ask(self, known: Mapping[str, SampleResult], progress: ProgressCallback) -> EvalReport:
        left, before = split_remaining(self.plans, known)
        self.folder.write_prompts(self.plans)
        self.listener.begin(self.plans, before, self.folder.path)
        results = list(before)

        def keep(result: SampleResult) -> None:
            self.folder.append([result])
            results.append(result)
            self.listener.result(result)

        started = time.monotonic()
        complete = True
        try:
            backend = create_backend(self.config, self.folder.path, self.listener.note, self.judge)
            with self._reached() as candidate:
                backend.run(left, candidate, keep, progress)
        except EngineStoppedError as error:
            complete = False
            self.listener.note(f"warning: {error}; what is left counts as failed")
        return EvalReport(
            model=self.model,
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

    def _reached(self) -> AbstractContextManager[ModelUnderTest]:
        """Yield the candidate as the backend can ask it: OpenCompass knows servers alone."""
        if self.config.backend == "native":
            return nullcontext(self.candidate)
        from llmctl.services.private_server import endpoint_for

        return endpoint_for(self.candidate)

    def _keep(self, report: EvalReport) -> None:
        self.folder.keep_run_id(report.run_id)  # the store may have answered late
        self.folder.write(REPORT_FILE, asdict(report))
        self.folder.write_text(TABLE_FILE, markdown_table([report]))
        self.folder.write_text(PAGE_FILE, render_html([LoadedRun.read(self.folder)]))


def create_backend(
    config: EvalConfig, folder: Path, warn: Callable[[str], None], judge: Judge | None = None
) -> Backend:
    """Return who asks the questions.

    Raises:
        ConfigError: that backend is not there.
    """
    if config.backend == "native":
        return NativeBackend(config.batch_size, judge)
    try:
        from llmctl.evaluation.opencompass import OpenCompassBackend
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this llmctl has no OpenCompass backend", hint="--backend native asks the same"
        ) from error
    backend: Backend = OpenCompassBackend(folder, warn)
    return backend
