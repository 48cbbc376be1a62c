"""What does a finished run leave in its folder? The weights that are kept, ready to use."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmctl.atomic_files import atomic_path
from llmctl.config import TrainConfig
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.engine.models.provenance import PROVENANCE_FILE, BaseModelRef, Provenance
from llmctl.train.card import FinetuneCard
from llmctl.train.checkpoints import Checkpoint
from llmctl.train.run import TrainOutcome
from llmctl.types import DatasetRef, TrainPlan, TrainReport

_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args")
_TOLD = (
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
"""Settings that a card and a provenance name."""


def build_provenance(
    config: TrainConfig,
    outline: ModelMetadata,
    base: BaseModelRef,
    data: DatasetRef,
    run_id: str | None,
    model_id: str | None = None,
) -> Provenance:
    """Say how the weights of a run come to be."""
    told = _TOLD if config.method != "full" else [n for n in _TOLD if n not in ("rank", "alpha")]
    return Provenance(
        base=base,
        template=outline.template.fingerprint,
        method=config.method,
        hyperparameters={name: getattr(config, name) for name in told},
        data=data,
        run_id=run_id,
        model_id=model_id,
    )


def write_tokenizer_and_provenance(folder: Path, tokenizer: Any, origin: Provenance) -> None:
    """Make a folder of weights whole: the tokenizer with its chat template, and where they come
    from."""
    tokenizer.save_pretrained(folder)
    origin.write(folder)


def publish_checkpoint(kept: Checkpoint, folder: Path) -> None:
    """Copy a checkpoint's weights and what goes with them to the top of the output folder.

    Each file appears whole; the provenance comes last, so that a folder which has one is whole.
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
    """Write the model card."""
    metrics = {"training loss, last step": report.losses[-1][1]} if report.losses else {}
    held = dict(report.eval_losses)
    if 0 in held:
        metrics["held-out loss before"] = held[0]
    if report.best_step in held:
        metrics["held-out loss of these weights"] = held[report.best_step]
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
    """Sum up a training, with what should be known of its result."""
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
