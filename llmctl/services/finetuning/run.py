"""The story of `llmctl finetune`: read the rows, plan, teach, and leave something that works."""

import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from llmctl.engine.models.provenance import Provenance
from llmctl.errors import LlmctlError
from llmctl.monitor import open_tracker, tracked
from llmctl.monitor.base import Terminated
from llmctl.services.evaluation.request import SILENT_OBSERVER, EvalObserver
from llmctl.services.finetuning.benchmarks import TrainingBenchmarks
from llmctl.services.finetuning.settings import FinetuneRequest, check_same_run, resolve_settings
from llmctl.train.checkpoints import (
    LOCK_FILE,
    Checkpoint,
    Checkpoints,
    check_output,
    empty_output,
    lock_output,
)
from llmctl.train.curves import CURVE_FILE, draw_curves
from llmctl.train.distributed import current_process, leave_process_group, wait_for_local_rank_zero
from llmctl.train.result import (
    build_provenance,
    build_train_report,
    publish_checkpoint,
    write_model_card,
    write_tokenizer_and_provenance,
)
from llmctl.train.run import TrainOutcome, TrainRun
from llmctl.train.samples import SAMPLES_FILE
from llmctl.train.setup.plan import PreparedTraining, prepare_training
from llmctl.train.setup.run_lock import RunLock
from llmctl.train.stop import StopRequest, TrainingInterrupted
from llmctl.types import (
    TAG_KEY_METRIC,
    ProgressCallback,
    RunStart,
    TrainEval,
    TrainEvent,
    TrainListener,
    TrainNote,
    TrainPlan,
    TrainReport,
    TrainStep,
    ignore_progress,
)

_SAME_ERROR_S = 60
"""Within which processes of one machine that are all wrong find out."""

__all__ = ["FinetuneRequest", "finetune"]


def finetune(
    request: FinetuneRequest,
    listen: TrainListener,
    progress: ProgressCallback = ignore_progress,
    exam_listener: EvalObserver = SILENT_OBSERVER,
) -> TrainReport | TrainPlan:
    """Teach a model; return the plan alone after a dry run.

    Args:
        listen: told the plan before anything is loaded, then every step and measurement.
        exam_listener: told of the exams that are sat before and after.

    Raises:
        ConfigError, DataError, TemplateError: settings or rows cannot be used.
        ModelNotFoundError, ModelLoadError, UnsafeModelError: the model cannot be had.
        OutOfMemoryError: it does not fit.
        TrainingDivergedError: the loss is no number any more.
        KeyboardInterrupt, Terminated: a signal ended it; the state is saved.
    """
    share = current_process()
    settings, before = resolve_settings(request)
    folder = Path(settings.values.output).expanduser().absolute()
    begins = share.rank == 0 and not request.resume
    if begins:
        check_output(folder, overwrite=request.overwrite, inputs=request.reads(settings.values))
    try:
        ready = prepare_training(settings, share, progress)
    except LlmctlError:
        wait_for_local_rank_zero(_SAME_ERROR_S)  # it says it for all, unless it fares better
        raise
    uri, world = request.tracking_uri, share.world
    exams = TrainingBenchmarks(settings.values, folder, listen, exam_listener, uri, processes=world)
    if before is not None:
        check_same_run(before, ready.receipt, request, listen)
    if begins:  # the model of an adapter is known only now
        base = {str(ready.job.outline.resolved.full_model.path): "the model"}
        check_output(folder, overwrite=request.overwrite, inputs=base)
    listen(ready.plan)
    if ready.shortage is not None:
        raise ready.shortage
    if request.dry_run:
        return ready.plan
    newest = Checkpoints(folder, keep=1).newest() if request.resume else None
    with ExitStack() as alone:
        if share.rank == 0:
            alone.enter_context(lock_output(folder))
            if not request.resume:
                empty_output(folder, overwrite=request.overwrite)
        return _Training(request, ready, before, listen, progress, exams).run(newest)


class _Training:
    """The part of a command that is tracked: from the loaded weights to the folder."""

    def __init__(
        self,
        request: FinetuneRequest,
        ready: PreparedTraining,
        before: RunLock | None,
        listen: TrainListener,
        progress: ProgressCallback,
        exams: TrainingBenchmarks,
    ) -> None:
        self._exams = exams
        self._request = request
        self._ready = ready
        self._before = before
        self._listen = listen
        self._progress = progress
        self._stop = StopRequest(patient=ready.job.share.world > 1)

    def run(self, resume: Checkpoint | None) -> TrainReport:
        request, ready, job = self._request, self._ready, self._ready.job
        first = job.share.rank == 0
        tracker = open_tracker(
            RunStart(
                kind="finetune",
                model=job.config.model,
                name=request.run_name,
                params={name: value for name, value in ready.receipt.config.items() if value != []},
                tags={TAG_KEY_METRIC: "eval/loss" if job.held else "train/loss"},
                resume_run_id=self._before.run_id if request.resume and self._before else None,
            ),
            tracking_uri=request.tracking_uri,
            enabled=request.track,
            warn=lambda text: self._listen(TrainNote(text)),
            progress=self._progress,
        )
        with tracked(tracker):
            self._tracker = tracker
            self._receipt = replace(ready.receipt, run_id=tracker.run_id)
            self._origin = build_provenance(
                job.config, job.outline, ready.receipt.base, ready.rows.data, tracker.run_id
            )
            if first:
                self._begin_record()
            self._exams.before(tracker)
            outcome = self._taught(resume)
            if not first:
                return build_train_report(job.folder, outcome, ready.plan)
            report = self._exams.after(tracker, self._published(outcome))
            self._end_record()
            return report

    def _taught(self, resume: Checkpoint | None) -> TrainOutcome:
        """Train; the weights are let go of at the end."""
        training = TrainRun(self._ready.job, self._told, self._stop, self._save_with)
        training.load(self._progress)
        try:
            with self._stop.listening():
                outcome = training.train(resume)
        except TrainingInterrupted:
            leave_process_group()
            self._leave()
        leave_process_group()
        return outcome

    def _begin_record(self) -> None:
        ready, tracker = self._ready, self._tracker
        self._receipt.write(ready.job.folder)
        tracker.log_artifact(ready.job.folder / LOCK_FILE)
        tracker.log_dataset(ready.rows.data, "training")
        if ready.rows.eval_data is not None:
            tracker.log_dataset(ready.rows.eval_data, "evaluation")
        plan = ready.plan
        tracker.log_params(
            {
                "trainable_parameters": plan.trainable,
                "parameters": plan.parameters,
                "rows": plan.rows,
                "eval_rows": plan.eval_rows,
                "tokens_per_epoch": plan.tokens,
                "steps": plan.steps,
            }
        )
        if (adapter := ready.job.outline.adapter) is not None:
            taught = Provenance.read(Path(adapter))
            if taught is not None and taught.model_id is not None:
                tracker.use_model(taught.model_id)

    def _save_with(self, folder: Path) -> None:
        write_tokenizer_and_provenance(folder, self._ready.job.outline.tokenizer, self._origin)

    def _told(self, event: TrainEvent) -> None:
        """Pass an event on to the person, and to the tracker."""
        if isinstance(event, TrainStep):
            self._tracker.log_metrics(
                {
                    "train/loss": event.loss,
                    "train/learning_rate": event.learning_rate,
                    "train/grad_norm": event.grad_norm,
                    "train/tokens_per_s": event.tokens_per_s,
                    "sys/memory_gb": event.memory_bytes / 1e9,
                },
                step=event.step,
            )
        elif isinstance(event, TrainEval):
            self._tracker.log_metrics({"eval/loss": event.loss}, step=event.step)
        self._listen(event)

    def _leave(self) -> NoReturn:
        """Say how to go on, and end as the signal asks."""
        folder = self._ready.job.folder
        newest = Checkpoints(folder, keep=1).newest()
        step = newest.step if newest else 0
        self._listen(
            TrainNote(
                f"stopped after step {step}, which is saved; "
                f"`llmctl finetune --resume --output {folder}` goes on"
            )
        )
        wait_for_local_rank_zero()
        if self._stop.signal == signal.SIGTERM:
            raise Terminated(signal.SIGTERM)
        raise KeyboardInterrupt

    def _published(self, outcome: TrainOutcome) -> TrainReport:
        """Put the result in its place, and say of it what there is to say."""
        ready, job, tracker = self._ready, self._ready.job, self._tracker
        report = build_train_report(job.folder, outcome, ready.plan, run_id=tracker.run_id)
        model_id = self._known_model()
        publish_checkpoint(outcome.kept, job.folder)
        draw_curves(report, job.folder / CURVE_FILE)
        model_id = model_id or tracker.log_model(
            job.folder.name,
            job.folder,
            {
                "llmctl.base": self._origin.base.model,
                "llmctl.template": self._origin.template or "",
            },
        )
        origin = replace(self._origin, model_id=model_id)
        origin.write(job.folder)
        write_model_card(
            job.folder,
            origin,
            report,
            {"tokens in an epoch": ready.plan.tokens},
        )
        final = {"train/seconds": report.seconds, "sys/peak_memory_gb": report.peak_bytes / 1e9}
        if report.predicted_bytes:
            final["sys/predicted_memory_gb"] = report.predicted_bytes / 1e9
        tracker.log_metrics(final, step=report.steps)
        for name in (CURVE_FILE, SAMPLES_FILE, "README.md"):
            if (job.folder / name).is_file():
                tracker.log_artifact(job.folder / name)
        return report

    def _known_model(self) -> str | None:
        """Return what the store calls the result, where it was there before the run broke off."""
        there = Provenance.read(self._ready.job.folder)
        return there.model_id if there and there.run_id == self._tracker.run_id else None

    def _end_record(self) -> None:
        """Say that nothing is left to go on with."""
        folder = self._ready.job.folder
        replace(self._receipt, finished=True).write(folder)
        self._tracker.log_artifact(folder / LOCK_FILE)
