"""The tokenized training and evaluation data of a run, read from its files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmctl.config import TrainConfig
from llmctl.data.dataset import TokenizedDataset, TokenizeOptions, build_dataset
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.types import DatasetRef, ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data of a training, tokenized and stored on disk."""

    prepared: TokenizedDataset
    data: DatasetRef
    eval_data: DatasetRef | None
    """`None` if the evaluation set is a share of the training data."""
    key: str
    """Equal keys mean equal token sequences and an equal split."""
    notes: tuple[str, ...]
    """Messages on rows that were changed or skipped."""


def read_training_data(
    config: TrainConfig, metadata: ModelMetadata, progress: ProgressCallback = ignore_progress
) -> TrainingData:
    """Read, validate and tokenize the files.

    Raises:
        ConfigError, TemplateError: the files or the chat template cannot be used.
        DataError: rows are invalid; the message lists them all.
    """
    eval_fraction = 0.0 if config.eval_data else config.eval_fraction
    train = _tokenize(config, metadata, config.data, eval_fraction, progress)
    notes = _skipped(config.data, train)
    if not config.eval_data:
        return TrainingData(train, train.data, None, train.key, (*notes, *_summarize(train)))
    held_out = _tokenize(config, metadata, config.eval_data, 0.0, progress)
    return TrainingData(
        replace(train, eval=held_out.train),
        train.data,
        held_out.data,
        f"{train.key}+{held_out.key}",
        (
            *notes,
            *_skipped(config.eval_data, held_out),
            *_summarize(train),
            *_summarize(held_out),
        ),
    )


def _tokenize(
    config: TrainConfig,
    metadata: ModelMetadata,
    source: Sequence[str],
    eval_fraction: float,
    progress: ProgressCallback,
) -> TokenizedDataset:
    assert config.max_length is not None
    options = TokenizeOptions(
        max_length=config.max_length,
        overlong=config.overlong,
        turns=config.turns,
        eval_fraction=eval_fraction,
        seed=config.seed,
        template_kwargs=config.template_kwargs,
        pairs=config.method == "dpo",
    )
    return build_dataset(
        source,
        metadata.template,
        metadata.eos_ids,
        options,
        reading=ReadOptions(config.columns, config.format, config.on_error),
        progress=progress,
    )


def _skipped(source: Sequence[str], dataset: TokenizedDataset) -> list[str]:
    """Return a note on the invalid rows that were left out."""
    if not dataset.skipped:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in dataset.skipped.items())
    return [f"{', '.join(source)}: invalid rows are left out ({kinds})"]


def _summarize(dataset: TokenizedDataset) -> list[str]:
    """Return a note on each kind of rows that were truncated or dropped."""
    report = dataset.report
    notes = list(report.notes)
    for verb, affected in (("shortened", report.truncated), ("left out", report.dropped)):
        for rows in affected:
            first = rows.origins[0]
            more = f" and {rows.count - 1:,} more" if rows.count > 1 else ""
            notes.append(f"{verb}: {first.file}:{first.line}{more}: {rows.reason}")
    return notes
