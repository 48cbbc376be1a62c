"""The story of `llmctl finetune`: read the rows, plan, teach, and leave something that works."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from llmctl.config import TrainConfig
from llmctl.config.finetune import SPELLINGS
from llmctl.config.settings import Layer, Setting, Settings, build, read_layer
from llmctl.engine.provenance import Provenance
from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor import open_tracker, tracked
from llmctl.monitor.base import Terminated
from llmctl.monitor.run_files import local_folder
from llmctl.monitor.run_store import find, open_runs
from llmctl.train.checkpoints import (
    LOCK_FILE,
    Checkpoint,
    Checkpoints,
    check_output,
    claim_output,
)
from llmctl.train.curves import CURVE_FILE, draw_curves
from llmctl.train.launch import Fleet, is_launched, launch, this_share
from llmctl.train.prepare import Preparation, prepare
from llmctl.train.receipt import Receipt
from llmctl.train.result import provenance, publish, write_beside, write_card
from llmctl.train.run import Outcome, TrainRun
from llmctl.train.samples import FILE as SAMPLES_FILE
from llmctl.train.stop import Interrupted, StopRequest
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

__all__ = ["FinetuneRequest", "Fleet", "finetune", "is_launched", "launch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """What a person asks of `llmctl finetune`."""

    options: Layer
    """Settings by option or variable."""
    file: Path | None = None
    """YAML file with settings."""
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    from_run: str | None = None
    """Id of a run, or a folder with its receipt, to repeat."""
    track: bool = True
    tracking_uri: str | None = None
    run_name: str | None = None


def finetune(
    request: FinetuneRequest,
    listen: TrainListener,
    progress: ProgressCallback = ignore_progress,
) -> TrainReport | None:
    """Teach a model; `None` after a dry run.

    Args:
        listen: told the plan before anything is loaded, then every step and measurement.

    Raises:
        ConfigError, DataError, TemplateError: settings or rows cannot be used.
        ModelNotFoundError, ModelLoadError, UnsafeModelError: the model cannot be had.
        OutOfMemoryError: it does not fit.
        TrainingDivergedError: the loss is no number any more.
        KeyboardInterrupt, Terminated: a signal ended it; the state is saved.
    """
    share = this_share()
    settings, before = _settings(request)
    folder = Path(settings.values.output).expanduser().absolute()
    if share.rank == 0 and not request.resume:
        check_output(folder, overwrite=request.overwrite)
    try:
        ready = prepare(settings, share, progress)
    except LlmctlError as error:
        if share.rank:  # the first process says it for all
            raise SystemExit(error.exit_code) from error
        raise
    if before is not None:
        _compare(before, ready.receipt, request, listen)
    listen(ready.plan)
    if request.dry_run:
        return None
    newest = Checkpoints(folder, keep=1).newest() if request.resume else None
    if share.rank == 0 and not request.resume:
        claim_output(folder, overwrite=request.overwrite)
    return _Training(request, ready, before, listen, progress).run(newest)


def _settings(request: FinetuneRequest) -> tuple[Settings[TrainConfig], Receipt | None]:
    """Put together what was chosen; return the receipt of the run that is gone on with, too."""
    chosen = [read_layer(request.file)] if request.file else []
    chosen.append(request.options)
    if request.resume:
        if request.from_run:
            raise ConfigError("--resume goes on with a run, and --from-run begins it anew")
        output = _output(chosen)
        before = Receipt.read(Path(output).expanduser())
        if before.finished:
            raise ConfigError(
                f"the run in {output} is finished",
                hint=f"`llmctl chat --model {output}` talks to it; another --output begins anew",
            )
        settings = build(TrainConfig, before.layer("the run"), *chosen, spellings=SPELLINGS)
        origins = {n: o for n, o in settings.origins.items() if o != "the run"}
        before.check_same(settings.values, origins)
        return settings, before
    if request.from_run:
        before = _receipt_of(request.from_run, request.tracking_uri)
        recalled = before.layer(f"run {request.from_run}")
        recalled = {name: value for name, value in recalled.items() if name != "output"}
        return build(TrainConfig, recalled, *chosen, spellings=SPELLINGS), before
    if request.dry_run:
        chosen.insert(0, {"output": Setting("checkpoints/dry-run", "nothing is written")})
    return build(TrainConfig, *chosen, spellings=SPELLINGS), None


def _output(layers: list[Layer]) -> str:
    for layer in reversed(layers):
        for name, setting in layer.items():
            if SPELLINGS.get(name, name) == "output" and setting.value is not None:
                return str(setting.value)
    raise ConfigError("--resume needs the folder of the run", hint="--resume --output FOLDER")


def _receipt_of(reference: str, tracking_uri: str | None) -> Receipt:
    """Find the receipt of a run: in a folder, or in the store by id or name."""
    folder = Path(reference).expanduser()
    if folder.exists():
        return Receipt.read(folder)
    with open_runs(tracking_uri) as runs:
        run = find(runs.runs(), reference)
    files = local_folder(run.artifact_uri)
    if files is None:
        raise ConfigError(
            f"the files of run {reference} are on another machine",
            hint=f"`llmctl runs export {reference} -o FOLDER`, then --from-run FOLDER",
        )
    return Receipt.read(files)


def _compare(
    before: Receipt, now: Receipt, request: FinetuneRequest, listen: TrainListener
) -> None:
    """Refuse to go on with, or to repeat, what is not the same any more."""
    hard, soft = before.differences(now)
    if hard and request.resume:
        raise ConfigError(
            "the run cannot go on: " + "; ".join(hard),
            hint="another --output begins a new run",
        )
    for difference in hard:
        listen(TrainNote(f"not the same run: {difference}"))
    for difference in soft:
        listen(TrainNote(f"the last digits may differ: {difference}"))


class _Training:
    """The part of a command that is tracked: from the loaded weights to the folder."""

    def __init__(
        self,
        request: FinetuneRequest,
        ready: Preparation,
        before: Receipt | None,
        listen: TrainListener,
        progress: ProgressCallback,
    ) -> None:
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
            self._origin = provenance(
                job.config, job.outline, ready.receipt.base, ready.rows.data, tracker.run_id
            )
            if first:
                self._begin_record()
            training = TrainRun(job, self._told, self._stop, self._save_with)
            training.load(self._progress)
            try:
                with self._stop.listening():
                    outcome = training.train(resume)
            except Interrupted:
                self._leave()
            return self._finish(outcome) if first else _report(job.folder, outcome, ready.plan)

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
        write_beside(folder, self._ready.job.outline.tokenizer, self._origin)

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
        if self._stop.signal == signal.SIGTERM:
            raise Terminated(signal.SIGTERM)
        raise KeyboardInterrupt

    def _finish(self, outcome: Outcome) -> TrainReport:
        ready, job, tracker = self._ready, self._ready.job, self._tracker
        report = _report(job.folder, outcome, ready.plan, run_id=tracker.run_id)
        publish(outcome.kept, job.folder)
        draw_curves(report, job.folder / CURVE_FILE)
        model_id = tracker.log_model(
            job.folder.name,
            job.folder,
            {
                "llmctl.base": self._origin.base.model,
                "llmctl.template": self._origin.template or "",
            },
        )
        origin = replace(self._origin, model_id=model_id)
        origin.write(job.folder)
        write_card(
            job.folder,
            origin,
            report,
            {"tokens in an epoch": ready.plan.tokens},
        )
        self._receipt = replace(self._receipt, finished=True)
        self._receipt.write(job.folder)
        final = {"train/seconds": report.seconds, "sys/peak_memory_gb": report.peak_bytes / 1e9}
        if report.predicted_bytes:
            final["sys/predicted_memory_gb"] = report.predicted_bytes / 1e9
        tracker.log_metrics(final, step=report.steps)
        for name in (LOCK_FILE, CURVE_FILE, SAMPLES_FILE, "README.md"):
            if (job.folder / name).is_file():
                tracker.log_artifact(job.folder / name)
        return report


def _report(
    folder: Path, outcome: Outcome, plan: TrainPlan, run_id: str | None = None
) -> TrainReport:
    before, after = outcome.samples.get(0, ()), outcome.samples.get(outcome.kept.step, ())
    notes = []
    if after and not any(reply.complete for reply in after):
        notes.append(
            "none of the sample replies ended by itself: more epochs, or longer --sample-tokens"
        )
    held = dict(outcome.eval_losses)
    if outcome.best_step is not None and 0 in held and held[outcome.best_step] >= held[0]:
        notes.append(
            "no measurement was better than the model before: the learning rate may be too high, "
            "or the held-out rows of another kind"
        )
    return TrainReport(
        output=str(folder),
        run_id=run_id,
        steps=outcome.steps,
        seconds=outcome.seconds,
        losses=outcome.losses,
        eval_losses=outcome.eval_losses,
        best_step=outcome.best_step,
        tokens_per_s=outcome.tokens_per_s,
        predicted_bytes=plan.peak_bytes,
        peak_bytes=outcome.peak_bytes,
        before=before,
        after=after,
        stopped_early=outcome.stopped_early,
        notes=tuple(notes),
    )
