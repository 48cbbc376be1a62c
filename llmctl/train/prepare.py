"""What will a training do? Everything is read and worked out here; no weights are touched."""

from dataclasses import dataclass
from pathlib import Path

from llmctl.config import TrainConfig
from llmctl.config.settings import Settings
from llmctl.data.batches import LengthGroupedBatches
from llmctl.data.packing import PackedDataset
from llmctl.engine.provenance import BaseModel
from llmctl.engine.trainable import ModelOutline, outline_model
from llmctl.engine.weight_files import fingerprint
from llmctl.train.feed import Share
from llmctl.train.method import count_trainable
from llmctl.train.receipt import Receipt, plain
from llmctl.train.resolve import Resolved, resolve_for_data, resolve_for_model, resolve_rhythm
from llmctl.train.rows import Rows, read_rows
from llmctl.train.run import Job
from llmctl.train.samples import Question, chosen_questions, held_out_questions
from llmctl.types import ModelSpec, Progress, ProgressCallback, TrainPlan, ignore_progress


@dataclass(frozen=True, slots=True)
class Preparation:
    """A training that could begin."""

    job: Job
    rows: Rows
    plan: TrainPlan
    receipt: Receipt


def prepare(
    settings: Settings[TrainConfig],
    share: Share,
    progress: ProgressCallback = ignore_progress,
) -> Preparation:
    """Read model facts and rows, fill in what nobody chose, and foretell what will happen.

    Raises:
        ConfigError, DataError, TemplateError: the settings, rows or template cannot be used.
        ModelNotFoundError, ModelLoadError, UnsafeModelError: as `load_model`.
    """
    config = settings.values
    outline = outline_model(_spec(config), progress)
    resolved = resolve_for_model(settings, outline)
    rows = read_rows(resolved.config, outline, progress)
    resolved = resolve_for_data(resolved, rows.prepared, share.world)
    config = resolved.config
    learnt = (
        PackedDataset(rows.prepared.train, config.max_length or 0)
        if config.packing
        else rows.prepared.train
    )
    per_epoch = len(LengthGroupedBatches(learnt.lengths, config.batch_size, seed=config.seed))
    held = rows.prepared.eval
    resolved, steps = resolve_rhythm(resolved, per_epoch, measures=held is not None)
    job = Job(
        config=resolved.config,
        outline=outline,
        learnt=learnt,
        held=held,
        questions=_questions(resolved.config, rows, outline),
        steps=steps,
        folder=Path(config.output).expanduser().absolute(),
        share=share,
    )
    progress(Progress("counting what learns"))
    return Preparation(job, rows, _plan(resolved, job, rows, per_epoch), _receipt(job, rows))


def _spec(config: TrainConfig) -> ModelSpec:
    return ModelSpec(
        model=config.model,
        quant=config.weights_quant,
        dtype=config.dtype,
        device=config.device,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )


def _questions(config: TrainConfig, rows: Rows, outline: ModelOutline) -> list[Question]:
    if config.sample_prompts:
        return chosen_questions(config.sample_prompts, outline.template)
    held = rows.prepared.eval
    if held is None or not config.samples:
        return []
    return held_out_questions(held, config.samples, outline.tokenizer)


def _plan(resolved: Resolved, job: Job, rows: Rows, per_epoch: int) -> TrainPlan:
    config, outline, report = job.config, job.outline, rows.prepared.report
    micro = config.micro_batch_size or 1
    shape = outline.shape
    held = len(job.held) if job.held else 0
    notes = list(rows.notes)
    if held == 0:
        notes.append(
            "nothing is held out, so nothing measures whether it learns or only memorises: "
            "give --eval-data, or more rows"
        )
    return TrainPlan(
        settings=resolved.listed(),
        model_id=outline.found.model_id,
        device=str(outline.device),
        dtype=config.dtype,
        parameters=shape.linear_parameters + shape.other_parameters,
        trainable=count_trainable(config, outline),
        rows=len(rows.prepared.train),
        eval_rows=held,
        tokens=int(rows.prepared.train.lengths.sum()),
        supervised_share=report.supervised_tokens / max(1, report.tokens),
        steps=job.steps,
        steps_per_epoch=per_epoch,
        micro_batch_size=micro,
        accumulation=config.batch_size // (micro * job.share.world),
        notes=tuple(notes),
    )


def _receipt(job: Job, rows: Rows) -> Receipt:
    outline = job.outline
    return Receipt(
        config=plain(job.config),
        base=BaseModel.of(outline.found.whole),
        adapter=fingerprint(Path(outline.adapter)) if outline.adapter else None,
        template=outline.template.fingerprint,
        data=rows.data,
        eval_data=rows.eval_data,
        rows=rows.key,
        world=job.share.world,
    )
