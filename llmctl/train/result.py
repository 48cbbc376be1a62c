"""The files of a finished run: weights, tokenizer, provenance, model card, loss curves."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.atomic_files import atomic_path
from llmctl.config import TrainConfig
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.engine.models.provenance import PROVENANCE_FILE, BaseModelRef, Provenance
from llmctl.monitor.read.plot import plot_curves
from llmctl.train.card import FinetuneCard
from llmctl.train.checkpoints import Checkpoint
from llmctl.train.run import TrainOutcome
from llmctl.types import DatasetRef, MetricPoint, TrainPlan, TrainReport

_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args")
_REPORTED_SETTINGS = (
    "rank",
    "alpha",
    "dropout",
    "learning_rate",
    "scheduler",
    "epochs",
    "batch_size",
    "max_length",
    "packing",
    "seed",
    "dtype",
    "quant",
)
"""Settings in the model card and the provenance."""
CURVE_FILE = "curves.png"


def build_provenance(
    config: TrainConfig,
    metadata: ModelMetadata,
    base: BaseModelRef,
    data: DatasetRef,
    run_id: str | None,
) -> Provenance:
    """Return the provenance of the weights of a run."""
    names = [
        name
        for name in _REPORTED_SETTINGS
        if config.method != "full" or name not in ("rank", "alpha")
    ]
    return Provenance(
        base=base,
        template=metadata.template.fingerprint,
        method=config.method,
        hyperparameters={name: getattr(config, name) for name in names},
        data=data,
        run_id=run_id,
    )


def write_tokenizer_and_provenance(folder: Path, tokenizer: Any, origin: Provenance) -> None:
    """Complete a folder of weights: write the tokenizer with its chat template, and the
    provenance."""
    tokenizer.save_pretrained(folder)
    origin.write(folder)


def publish_checkpoint(kept: Checkpoint, folder: Path) -> None:
    """Copy a checkpoint's files, without the training state, to the top of the output folder.

    Each file is written atomically. The provenance comes last: a folder that has it is complete.
    """
    files = [
        path
        for path in kept.path.iterdir()
        if path.is_file() and not path.name.startswith(_STATE) and path.name != "README.md"
    ]
    for path in sorted(files, key=lambda file: file.name == PROVENANCE_FILE):
        with atomic_path(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def write_model_card(
    folder: Path, origin: Provenance, report: TrainReport, counts: Mapping[str, int]
) -> None:
    """Write the model card, `README.md`."""
    metrics = {"training loss, last step": report.losses[-1][1]} if report.losses else {}
    eval_losses = dict(report.eval_losses)
    if 0 in eval_losses:
        metrics["evaluation loss before training"] = eval_losses[0]
    if report.best_step in eval_losses:
        metrics["evaluation loss of these weights"] = eval_losses[report.best_step]
    FinetuneCard(
        name=folder.name,
        kind="model" if origin.method == "full" else "adapter",
        origin=origin,
        metrics=metrics,
        counts=counts,
        samples=[
            (before.prompt, before.reply, after.reply)
            for before, after in zip(report.before, report.after, strict=False)
        ],
        remarks=report.notes,
    ).write(folder)


def build_train_report(
    folder: Path, outcome: TrainOutcome, plan: TrainPlan, run_id: str | None = None
) -> TrainReport:
    """Return the report of a training, with notes on likely problems of its result."""
    before, after = outcome.samples.get(0, ()), outcome.samples.get(outcome.kept.step, ())
    notes = []
    if after and not any(reply.complete for reply in after):
        notes.append(
            "none of the sample replies is complete: try more epochs, or a larger --sample-tokens"
        )
    eval_losses = dict(outcome.eval_losses)
    if (
        outcome.best_step is not None
        and 0 in eval_losses
        and eval_losses[outcome.best_step] >= eval_losses[0]
    ):
        notes.append(
            "no evaluation was better than the one before training: the learning rate may be too "
            "high, or the evaluation data differ from the training data"
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


def draw_loss_curves(report: TrainReport, path: Path) -> None:
    """Write a PNG with the losses over the steps, if there are any."""
    curves = {"train/loss": report.losses, "eval/loss": report.eval_losses}
    points = {
        name: [MetricPoint(step, 0.0, loss) for step, loss in losses]
        for name, losses in curves.items()
        if losses
    }
    if points:
        plot_curves([(path.parent.name, report.run_id or "run", points)], list(points), path)
