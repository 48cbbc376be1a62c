"""The service of `llmctl finetune`: plan, train, evaluate, publish and track a run."""

import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from llmctl.engine.models.provenance import PROVENANCE_FILE, Provenance
from llmctl.errors import LlmctlError
from llmctl.monitor import open_tracker, tracked
from llmctl.monitor.base import Terminated
from llmctl.services.evaluation.request import EvalObserver
from llmctl.services.finetuning.benchmarks import TrainingBenchmarks
from llmctl.services.finetuning.settings import (
    FinetuneRequest,
    ResolvedRequest,
    check_same_run,
    resolve_settings,
)
from llmctl.train.checkpoints import (
    LOCK_FILE,
    Checkpoint,
    Checkpoints,
    check_output,
    empty_output,
    lock_output,
)
from llmctl.train.distributed import current_process, leave_process_group, wait_for_local_rank_zero
from llmctl.train.result import (
    CURVE_FILE,
    build_provenance,
    build_train_report,
    draw_loss_curves,
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
"""Time in which all processes of a machine run into the same configuration error."""

__all__ = ["FinetuneRequest", "finetune"]


def finetune(
    request: FinetuneRequest,
    listener: TrainListener,
    progress: ProgressCallback = ignore_progress,
    benchmark_observer: EvalObserver = EvalObserver(),  # noqa: B008  without state
    resolved: ResolvedRequest | None = None,
) -> TrainReport | TrainPlan:
    """Fine-tune a model; a dry run returns the plan only.

    Args:
        listener: receives the plan before the weights are loaded, then every step and evaluation.
        benchmark_observer: receives the events of the benchmarks before and after training.
        resolved: the result of `resolve_settings`, if the caller has it already.

    Raises:
        ConfigError, DataError, TemplateError: settings, rows or chat template cannot be used.
        ModelNotFoundError, ModelLoadError, UnsafeModelError: the model cannot be loaded.
        OutOfMemoryError: the training does not fit into memory.
        TrainingDivergedError: the loss or its gradient is NaN or infinite.
        KeyboardInterrupt, Terminated: a signal stopped the run; its state is saved.
    """
    process = current_process()
    settings, before = resolved or resolve_settings(request)
    folder = Path(settings.values.output).expanduser().absolute()
    starts_new = process.rank == 0 and not request.resume
    if starts_new:
        inputs = request.input_paths(settings.values)
        check_output(folder, overwrite=request.overwrite, inputs=inputs)
    try:
        prepared = prepare_training(settings, process, progress)
    except LlmctlError:
        wait_for_local_rank_zero(_SAME_ERROR_S)  # it reports the error for all processes
        raise
    uri, world_size = request.tracking_uri, process.world_size
    benchmarks = TrainingBenchmarks(
        settings.values, folder, listener, benchmark_observer, uri, processes=world_size
    )
    if before is not None:
        check_same_run(before, prepared.run_lock, request, listener)
    if starts_new:  # the base model of an adapter is known only now
        base = {str(prepared.job.metadata.resolved.full_model.path): "the model"}
        check_output(folder, overwrite=request.overwrite, inputs=base)
    listener(prepared.plan)
    if prepared.memory_error is not None:
        raise prepared.memory_error
    if request.dry_run:
        return prepared.plan
    newest = Checkpoints(folder, keep=1).newest() if request.resume else None
    with ExitStack() as stack:
        if process.rank == 0:
            stack.enter_context(lock_output(folder))
            if not request.resume:
                empty_output(folder, overwrite=request.overwrite)
        return _TrackedTraining(request, prepared, before, listener, progress, benchmarks).run(
            newest
        )


class _TrackedTraining:
    """The part of the command inside the tracked run: benchmarks, training, publication."""

    def __init__(
        self,
        request: FinetuneRequest,
        prepared: PreparedTraining,
        before: RunLock | None,
        listener: TrainListener,
        progress: ProgressCallback,
        benchmarks: TrainingBenchmarks,
    ) -> None:
        self._benchmarks = benchmarks
        self._request = request
        self._prepared = prepared
        self._before = before
        self._listener = listener
        self._progress = progress
        self._stop = StopRequest(ignore_repeats=prepared.job.process.world_size > 1)

    def run(self, resume: Checkpoint | None) -> TrainReport:
        request, prepared, job = self._request, self._prepared, self._prepared.job
        is_rank_zero = job.process.rank == 0
        tracker = open_tracker(
            RunStart(
                kind="finetune",
                model=job.config.model,
                name=request.run_name,
                params={
                    name: value for name, value in prepared.run_lock.config.items() if value != []
                },
                tags={TAG_KEY_METRIC: "eval/loss" if job.eval_set else "train/loss"},
                resume_run_id=self._before.run_id if request.resume and self._before else None,
            ),
            tracking_uri=request.tracking_uri,
            enabled=request.track,
            warn=lambda text: self._listener(TrainNote(text)),
            progress=self._progress,
        )
        with tracked(tracker):
            self._tracker = tracker
            self._run_lock = replace(prepared.run_lock, run_id=tracker.run_id)
            self._provenance = build_provenance(
                job.config, job.metadata, prepared.run_lock.base, prepared.data.data, tracker.run_id
            )
            if is_rank_zero:
                self._log_inputs()
            self._benchmarks.before(tracker)
            outcome = self._train(resume)
            if not is_rank_zero:
                return build_train_report(job.folder, outcome, prepared.plan)
            report = self._benchmarks.after(tracker, self._publish(outcome))
            self._mark_finished()
            return report

    def _train(self, resume: Checkpoint | None) -> TrainOutcome:
        """Train; the weights are freed on return."""
        training = TrainRun(self._prepared.job, self._on_event, self._stop, self._write_extra_files)
        training.load(self._progress)
        try:
            with self._stop.handle_signals():
                outcome = training.train(resume)
        except TrainingInterrupted:
            leave_process_group()
            self._exit_interrupted()
        leave_process_group()
        return outcome

    def _log_inputs(self) -> None:
        """Write the run lock; log it, the datasets and the counts of the plan."""
        prepared, tracker = self._prepared, self._tracker
        self._run_lock.write(prepared.job.folder)
        tracker.complete_ids(prepared.job.folder / LOCK_FILE)
        tracker.log_artifact(prepared.job.folder / LOCK_FILE)
        tracker.log_dataset(prepared.data.data, "training")
        if prepared.data.eval_data is not None:
            tracker.log_dataset(prepared.data.eval_data, "evaluation")
        plan = prepared.plan
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
        if (adapter := prepared.job.metadata.adapter) is not None:
            continued = Provenance.read(Path(adapter))
            if continued is not None and continued.model_id is not None:
                tracker.use_model(continued.model_id)

    def _write_extra_files(self, folder: Path) -> None:
        write_tokenizer_and_provenance(
            folder, self._prepared.job.metadata.tokenizer, self._provenance
        )

    def _on_event(self, event: TrainEvent) -> None:
        """Log an event, and pass it on to the listener."""
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
        self._listener(event)

    def _exit_interrupted(self) -> NoReturn:
        """Report how to resume, and raise the exception of the signal."""
        folder = self._prepared.job.folder
        newest = Checkpoints(folder, keep=1).newest()
        step = newest.step if newest else 0
        self._listener(
            TrainNote(
                f"stopped after step {step}, which is saved; continue with "
                f"`llmctl finetune --resume --output {folder}`"
            )
        )
        wait_for_local_rank_zero()
        if self._stop.signal == signal.SIGTERM:
            raise Terminated(signal.SIGTERM)
        raise KeyboardInterrupt

    def _publish(self, outcome: TrainOutcome) -> TrainReport:
        """Publish the kept checkpoint with its model card and curves; log it as a model."""
        prepared, job, tracker = self._prepared, self._prepared.job, self._tracker
        report = build_train_report(job.folder, outcome, prepared.plan, run_id=tracker.run_id)
        model_id = self._logged_model_id()
        publish_checkpoint(outcome.kept, job.folder)
        draw_loss_curves(report, job.folder / CURVE_FILE)
        model_id = model_id or tracker.log_model(
            job.folder.name,
            job.folder,
            {
                "llmctl.base": self._provenance.base.model,
                "llmctl.template": self._provenance.template or "",
            },
        )
        provenance = replace(self._provenance, model_id=model_id, run_id=tracker.run_id)
        provenance.write(job.folder)
        tracker.complete_ids(job.folder / PROVENANCE_FILE)
        write_model_card(job.folder, provenance, report, {"tokens per epoch": prepared.plan.tokens})
        final = {"train/seconds": report.seconds, "sys/peak_memory_gb": report.peak_bytes / 1e9}
        if report.predicted_bytes:
            final["sys/predicted_memory_gb"] = report.predicted_bytes / 1e9
        tracker.log_metrics(final, step=report.steps)
        for name in (CURVE_FILE, SAMPLES_FILE, "README.md"):
            if (job.folder / name).is_file():
                tracker.log_artifact(job.folder / name)
        return report

    def _logged_model_id(self) -> str | None:
        """Return the id of the logged model if this run published it before an interruption."""
        published = Provenance.read(self._prepared.job.folder)
        if published is not None and published.run_id == self._tracker.run_id:
            return published.model_id
        return None

    def _mark_finished(self) -> None:
        """Write the run lock as finished: the run cannot be resumed any more."""
        folder = self._prepared.job.folder
        replace(self._run_lock, finished=True, run_id=self._tracker.run_id).write(folder)
        self._tracker.complete_ids(folder / LOCK_FILE)
        self._tracker.log_artifact(folder / LOCK_FILE)
