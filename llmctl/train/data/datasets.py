"""Which rows are learnt from, and which are held out? Files become token sequences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmctl.config import TrainConfig
from llmctl.data.dataset import TokenizedDataset, TokenizeOptions, build_dataset
from llmctl.data.digests import dataset_ref
from llmctl.data.io.reader import read_examples
from llmctl.data.rows.row_errors import DataError, RowErrorLog
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.types import DatasetRef, Example, ProgressCallback, ignore_progress

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The rows of a training, on the disk."""

    prepared: TokenizedDataset
    data: DatasetRef
    eval_data: DatasetRef | None
    """`None` where what is measured on is a share of the data."""
    key: str
    """Equal keys are equal sequences, equally split."""
    notes: tuple[str, ...]


def read_training_data(
    config: TrainConfig, outline: ModelMetadata, progress: ProgressCallback = ignore_progress
) -> TrainingData:
    """Read, check and tokenise the files.

    Raises:
        ConfigError, DataError, TemplateError: they cannot be used; all bad rows are named at once.
    """
    data, notes = _look_at(config, config.data, progress)
    share = 0.0 if config.eval_data else config.eval_fraction
    learnt = _tokenise(config, outline, config.data, data, share, progress)
    if not config.eval_data:
        return TrainingData(learnt, data, None, learnt.report.key, (*notes, *_account(learnt)))
    eval_data, eval_notes = _look_at(config, config.eval_data, progress)
    held = _tokenise(config, outline, config.eval_data, eval_data, 0.0, progress)
    return TrainingData(
        replace(learnt, eval=held.train),
        data,
        eval_data,
        f"{learnt.report.key}+{held.report.key}",
        (*notes, *eval_notes, *_account(learnt), *_account(held)),
    )


def _look_at(
    config: TrainConfig, source: Sequence[str], progress: ProgressCallback
) -> tuple[DatasetRef, list[str]]:
    """Read files once, for what is wrong with them and for their digest."""
    problems = RowErrorLog(_SHOWN)
    found = dataset_ref(
        source,
        columns=config.columns,
        format=config.format,
        on_row_error=problems,
        progress=progress,
    )
    if not problems.total:
        return found, []
    lines = [str(problem) for problem in problems.first]
    if problems.total > len(lines):
        lines.append(f"and {problems.total - len(lines):,} more")
    if config.on_error == "fail" or not found.rows:
        way = "--on-error skip leaves these rows out" if found.rows else "no row is left to learn"
        raise DataError("\n".join(lines), hint=f"{way}; `llmctl data check` shows more")
    kinds = ", ".join(f"{count} {kind}" for kind, count in problems.kinds.most_common())
    return found, [f"{', '.join(source)}: rows that cannot be used are left out ({kinds})"]


def _tokenise(
    config: TrainConfig,
    outline: ModelMetadata,
    source: Sequence[str],
    data: DatasetRef,
    eval_fraction: float,
    progress: ProgressCallback,
) -> TokenizedDataset:
    def examples() -> Iterator[Example]:
        return read_examples(
            source,
            columns=config.columns,
            format=config.format,
            on_row_error=RowErrorLog(0),
            progress=progress,
        )

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
        examples, outline.template, outline.eos_ids, options, dataset=data, progress=progress
    )


def _account(prepared: TokenizedDataset) -> list[str]:
    """Say what did not become of rows what they were."""
    report = prepared.report
    notes = list(report.notes)
    for verb, losses in (("shortened", report.truncated), ("left out", report.dropped)):
        for loss in losses:
            first = loss.origins[0]
            more = f" and {loss.count - 1:,} more" if loss.count > 1 else ""
            notes.append(f"{verb}: {first.file}:{first.line}{more}: {loss.reason}")
    return notes
