"""The story of `llmctl eval`: find the exams, load the model, ask, add up, remember."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from llmctl import __version__
from llmctl.config import EvalConfig, store_home
from llmctl.config.evaluation import SPELLINGS
from llmctl.config.settings import Layer, build, read_layer
from llmctl.engine import catalog
from llmctl.engine.provenance import BaseModel, Provenance
from llmctl.engine.registry import create_engine
from llmctl.errors import ConfigError, EngineStoppedError
from llmctl.evaluation.backend import Backend, Candidate, Endpoint
from llmctl.evaluation.exam_file import exam_suite, is_exam_file
from llmctl.evaluation.locate import locate
from llmctl.evaluation.native import NativeBackend
from llmctl.evaluation.planning import Wanted, plan_suite
from llmctl.evaluation.report import score_suite
from llmctl.evaluation.run_folder import REPORT, RunFolder, question_key
from llmctl.evaluation.suites import Suite, find_suite
from llmctl.evaluation.table import markdown
from llmctl.monitor import Tracker, open_tracker, tracked
from llmctl.types import (
    TAG_KEY_METRIC,
    DatasetRef,
    EngineInfo,
    EvalReport,
    ModelSpec,
    ProgressCallback,
    QuestionResult,
    RunStart,
    SuitePlan,
    SuiteScore,
    ignore_progress,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What a person asks of `llmctl eval`."""

    options: Layer
    """Settings by option or variable."""
    file: Path | None = None
    """YAML file with settings."""
    resume: bool = False
    track: bool = True
    tracking_uri: str | None = None


class EvalListener(Protocol):
    """Who looks on while an exam is sat."""

    def begin(self, plans: Sequence[SuitePlan], known: Sequence[QuestionResult]) -> None:
        """Learn what will be asked, and what an earlier run has answered of it."""

    def loaded(self, info: EngineInfo) -> None:
        """Learn what sits the exam, where it is a model of ours."""

    def result(self, result: QuestionResult) -> None:
        """Learn of an answer."""

    def note(self, text: str) -> None:
        """Learn what a person should know besides."""


def evaluate(
    request: EvalRequest, listener: EvalListener, progress: ProgressCallback = ignore_progress
) -> EvalReport:
    """Sit a model through exams.

    Every answer is on the disk as soon as it is there. Questions that fail are counted in the
    report; so are those that were left when the engine or the server died.

    Raises:
        ConfigError: settings, data, or a folder of results cannot be used.
        ModelNotFoundError, ModelLoadError, OutOfMemoryError: as `BaseEngine.load`.
    """
    layers = [read_layer(request.file)] if request.file else []
    config = build(EvalConfig, *layers, request.options, spellings=SPELLINGS).values
    if request.resume and config.output is None:
        raise ConfigError("--resume needs the folder of the run", hint="--resume --output FOLDER")
    plans = [_plan(name, config, progress) for name in config.dataset]
    folder = RunFolder(_output(config))
    with _candidate(config, listener, progress) as candidate:
        how = _how(config, candidate)
        run = _Run(config, plans, folder, how, candidate, listener)
        known = folder.begin(run.identity(), resume=request.resume)
        return run.tracked(known, request, progress)


def plan_of(name: str, data_dir: Path | None, wanted: Wanted) -> SuitePlan:
    """Plan one exam, by its name or its file."""
    if is_exam_file(name):
        file = Path(name).expanduser().resolve()
        return plan_suite(exam_suite(file), file.parent, wanted)
    suite = find_suite(name)
    return plan_suite(suite, locate(suite, data_dir), wanted)


def _plan(name: str, config: EvalConfig, progress: ProgressCallback) -> SuitePlan:
    suite: Suite | None = None if is_exam_file(name) else find_suite(name)
    mode = config.mode
    if mode is None and config.base_url is not None and suite is not None and "gen" in suite.forms:
        mode = "gen"  # what every server can do
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    if suite is not None:
        from llmctl.evaluation.pull import fetch_if_missing

        fetch_if_missing(suite, data_dir, progress)
    wanted = Wanted(
        mode, config.shots, config.limit, config.subjects, config.seed, config.max_new_tokens
    )
    return plan_of(name, data_dir, wanted)


def _output(config: EvalConfig) -> Path:
    if config.output is not None:
        return Path(config.output).expanduser().absolute()
    names = "-".join(Path(name).stem for name in config.dataset)[:60]
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return evals_folder() / f"{stamp}-{names}"


def evals_folder() -> Path:
    """Return the folder of runs that were given none of their own. It may not exist yet."""
    return store_home() / "evals"


@contextmanager
def _candidate(
    config: EvalConfig, listener: EvalListener, progress: ProgressCallback
) -> Iterator[Candidate]:
    """Load the model, or name the server."""
    if config.base_url is not None:
        from llmctl.evaluation.endpoint_sitter import endpoint

        yield endpoint(config.base_url, _served_name(config), config.api_key or "")
        return
    spec = ModelSpec(
        model=config.model,
        quant=config.quant,
        device=config.device,
        dtype=config.dtype,
        adapter=config.adapter,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    with create_engine(spec) as engine:
        engine.load(progress)
        listener.loaded(engine.info())
        yield engine


def _served_name(config: EvalConfig) -> str | None:
    """Return the model's name on the server; None asks the server for its only one."""
    return None if config.model == EvalConfig(dataset=("",)).model else config.model


def _how(config: EvalConfig, candidate: Candidate) -> dict[str, str]:
    """Return what the numbers depend on besides the questions."""
    if isinstance(candidate, Endpoint):
        return {"endpoint": candidate.base_url, "model": candidate.model}
    info = candidate.info()
    found = catalog.locate(
        config.model, revision=candidate.spec.revision, allow_pickle=config.allow_pickle
    )
    adapter = config.adapter or (str(found.path) if found.base is not None else None)
    how = {
        "model": info.model_id,
        "weights": BaseModel.of(found.whole).weights,
        "dtype": info.dtype,
        "quant": info.quant,
        "template": info.template_fingerprint or "none",
    }
    if adapter is not None:
        from llmctl.engine.weight_files import fingerprint

        how["adapter"] = fingerprint(Path(adapter).expanduser())
    return how


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, from its first question to its report."""

    config: EvalConfig
    plans: Sequence[SuitePlan]
    folder: RunFolder
    how: Mapping[str, str]
    candidate: Candidate
    listener: EvalListener

    @property
    def model(self) -> str:
        """The candidate as a person knows it."""
        if isinstance(self.candidate, Endpoint):
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
            "config": asdict(replace(self.config, api_key=None)),
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
        known: Mapping[str, QuestionResult],
        request: EvalRequest,
        progress: ProgressCallback,
    ) -> EvalReport:
        """Ask, add up, and keep a record of it."""
        origin = self._origin()
        start = RunStart(
            kind="eval",
            model=self.model,
            params={
                **self.how,
                **{k: v for k, v in self.identity()["config"].items() if v not in (None, ())},
                **{plan.suite: asdict(_setting(plan)) for plan in self.plans},
            },
            tags={TAG_KEY_METRIC: f"eval/{self.plans[0].suite}"},
            parent_run_id=None if origin is None else origin.run_id,
        )
        tracker = open_tracker(
            start,
            tracking_uri=request.tracking_uri,
            enabled=request.track,
            warn=self.listener.note,
            progress=progress,
        )
        with tracked(tracker):
            if origin is not None and origin.model_id is not None:
                tracker.use_model(origin.model_id)
            for plan in self.plans:
                tracker.log_dataset(_dataset(plan), "evaluation")
            report = replace(self._ask(known, progress), run_id=tracker.run_id)
            self._keep(report)
            _log(tracker, report, self.folder, None if origin is None else origin.model_id)
            if report.failed:
                tracker.end("failed", f"{report.failed} questions have no answer")
        return report

    def _origin(self) -> Provenance | None:
        """Return how the model came to be, if we taught it."""
        if isinstance(self.candidate, Endpoint):
            return None
        for folder in (self.config.adapter, self.config.model):
            if folder is not None:
                known = Provenance.read(Path(folder).expanduser())
                if known is not None:
                    return known
        return None

    def _ask(self, known: Mapping[str, QuestionResult], progress: ProgressCallback) -> EvalReport:
        left, before = _left(self.plans, known)
        self.folder.write_prompts(self.plans)
        self.listener.begin(self.plans, before)
        results = list(before)

        def keep(result: QuestionResult) -> None:
            self.folder.append([result])
            results.append(result)
            self.listener.result(result)

        started = time.monotonic()
        complete = True
        try:
            backend = backend_of(self.config, self.folder.path, self.listener.note)
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
                score_suite(plan, [r for r in results if r.suite == plan.suite])
                for plan in self.plans
            ),
            seconds=time.monotonic() - started,
            folder=str(self.folder.path),
            complete=complete,
        )

    def _reached(self) -> AbstractContextManager[Candidate]:
        """Yield the candidate as the backend can ask it: OpenCompass knows servers alone."""
        if self.config.backend == "native":
            return nullcontext(self.candidate)
        from llmctl.services.private_server import reachable

        return reachable(self.candidate)

    def _keep(self, report: EvalReport) -> None:
        self.folder.write(REPORT, asdict(report))
        self.folder.write_text("report.md", markdown([report]))


def backend_of(config: EvalConfig, folder: Path, warn: Callable[[str], None]) -> Backend:
    """Return who asks the questions.

    Raises:
        ConfigError: that backend is not there.
    """
    if config.backend == "native":
        return NativeBackend(config.batch_size)
    try:
        from llmctl.evaluation.opencompass import OpenCompassBackend
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this llmctl has no OpenCompass backend", hint="--backend native asks the same"
        ) from error
    backend: Backend = OpenCompassBackend(folder, warn)
    return backend


def _left(
    plans: Sequence[SuitePlan], known: Mapping[str, QuestionResult]
) -> tuple[list[SuitePlan], list[QuestionResult]]:
    """Part the plans into what is still to be asked and what is answered."""
    answered = []
    left = []
    for plan in plans:
        subjects = []
        for subject in plan.subjects:
            keys = {q.key: question_key(q) for q in subject.questions}
            answered += [known[key] for key in keys.values() if key in known]
            open_ = tuple(q for q in subject.questions if keys[q.key] not in known)
            if open_:
                subjects.append(replace(subject, questions=open_))
        if subjects:
            left.append(replace(plan, subjects=tuple(subjects)))
    return left, answered


@dataclass(frozen=True, slots=True)
class _Setting:
    mode: str
    shots: int
    prompt_hash: str
    data_hash: str
    questions: int


def _setting(plan: SuitePlan) -> _Setting:
    return _Setting(
        plan.mode, plan.shots, plan.prompt_hash, plan.data_hash[:16], plan.question_count
    )


def _dataset(plan: SuitePlan) -> DatasetRef:
    return DatasetRef(plan.suite, plan.data_source, plan.data_hash, plan.question_count)


def _log(tracker: Tracker, report: EvalReport, folder: RunFolder, model_id: str | None) -> None:
    for suite in report.suites:
        tracker.log_metrics(metrics_of(suite), model_id=model_id)
    tracker.log_artifact(folder.path, "eval")


def metrics_of(suite: SuiteScore) -> dict[str, float]:
    """Return the metrics of a suite: `eval/ceval`, `eval/ceval/stem`, `eval/ceval/law`, ...

    The suite's own number is the macro average where it has subjects, as OpenCompass reports it.
    """
    name, overall = f"eval/{suite.suite}", suite.overall
    values = {
        name: overall.accuracy if overall.macro is None else overall.macro,
        f"{name}/micro": overall.accuracy,
        f"{name}/stderr": overall.stderr,
        f"{name}/low": overall.low,
        f"{name}/high": overall.high,
        f"{name}/robust": overall.robust_accuracy,
        f"{name}/answered": float(overall.answered),
        f"{name}/failed": float(overall.failed),
    }
    for part in (*suite.categories, *(suite.subjects if len(suite.subjects) > 1 else ())):
        values[f"{name}/{part.name}"] = part.accuracy if part.macro is None else part.macro
    return {key: value for key, value in values.items() if value is not None}
