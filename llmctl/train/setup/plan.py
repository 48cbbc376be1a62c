"""What will a training do? Everything is read and worked out here; no weights are touched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmctl.config import TrainConfig
from llmctl.config.finetune import largest_divisor
from llmctl.config.settings import ResolvedConfig
from llmctl.data.dataset import PairDataset, TokenDataset, TokenizedDataset
from llmctl.engine.loading.trainable import ModelMetadata, load_model_metadata
from llmctl.engine.models.provenance import BaseModelRef, check_provenance
from llmctl.engine.models.weight_files import fingerprint
from llmctl.errors import OutOfMemoryError
from llmctl.train.data.collate import LengthGroupedBatchSampler
from llmctl.train.data.dataloaders import TrainDataset
from llmctl.train.data.datasets import TrainingData, read_training_data
from llmctl.train.data.packing import PackedDataset
from llmctl.train.distributed import ProcessInfo
from llmctl.train.run import TrainingJob
from llmctl.train.samples import SamplePrompt, held_out_prompts, user_prompts
from llmctl.train.setup.continue_adapter import settings_from_adapter
from llmctl.train.setup.defaults import (
    ResolvedSettings,
    resolve_for_data,
    resolve_for_model,
    resolve_schedule,
)
from llmctl.train.setup.memory import TrainMemoryEstimate, TrainMemoryEstimator
from llmctl.train.setup.run_lock import RunLock, config_to_json
from llmctl.train.setup.trainable_parameters import count_trainable
from llmctl.types import ModelSpec, Progress, ProgressCallback, TrainPlan, ignore_progress


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """A training that could begin."""

    job: TrainingJob
    rows: TrainingData
    plan: TrainPlan
    receipt: RunLock
    shortage: OutOfMemoryError | None
    """Why it cannot begin, with what would fit."""


def prepare_training(
    settings: ResolvedConfig[TrainConfig],
    share: ProcessInfo,
    progress: ProgressCallback = ignore_progress,
) -> PreparedTraining:
    """Read model facts and rows, fill in what nobody chose, and foretell what will happen.

    Raises:
        ConfigError, DataError, TemplateError: the settings, rows or template cannot be used.
        ModelNotFoundError, ModelLoadError, UnsafeModelError: as `load_model`.
    """
    config = settings.values
    outline = load_model_metadata(_spec(config), progress)
    if config.method == "dpo":
        from llmctl.train.dpo import check_dpo_settings  # from here on an extra is needed

        check_dpo_settings(config, outline.adapter)
    known = check_provenance(
        outline.resolved,
        adapter=outline.adapter,
        template=outline.template.fingerprint,
        template_chosen=config.chat_template is not None,
    )
    if outline.adapter is not None:
        settings = settings_from_adapter(settings, outline.adapter)
    resolved = resolve_for_model(settings, outline)
    rows = read_training_data(resolved.config, outline, progress)
    resolved = resolve_for_data(resolved, rows.prepared, share.world, outline.device.type)
    config = resolved.config
    learnt, held = _in_rows(config, rows.prepared)
    progress(Progress("working out the memory"))
    resolved, memory, shortage = _fitted(
        resolved, outline, learnt, share, fixed=settings.values.micro_batch_size is not None
    )
    per_epoch = len(LengthGroupedBatchSampler(learnt.lengths, config.batch_size, seed=config.seed))
    resolved, steps = resolve_schedule(resolved, per_epoch, measures=held is not None)
    job = TrainingJob(
        config=resolved.config,
        outline=outline,
        learnt=learnt,
        held=held,
        questions=_questions(resolved.config, rows, outline),
        steps=steps,
        folder=Path(config.output).expanduser().absolute(),
        share=share,
    )
    plan = _plan(resolved, job, rows, per_epoch, memory, known.notes)
    return PreparedTraining(job, rows, plan, _receipt(job, rows), shortage)


def _in_rows(
    config: TrainConfig, prepared: TokenizedDataset
) -> tuple[TrainDataset, TokenDataset | PairDataset | None]:
    """Return what is learnt from and what is held out, in the rows that the method takes."""
    if config.method == "dpo":
        return PairDataset(prepared.train), prepared.eval and PairDataset(prepared.eval)
    if config.packing:
        return PackedDataset(prepared.train, config.max_length or 0), prepared.eval
    return prepared.train, prepared.eval


def _fitted(
    resolved: ResolvedSettings,
    outline: ModelMetadata,
    learnt: TrainDataset,
    share: ProcessInfo,
    *,
    fixed: bool,
) -> tuple[ResolvedSettings, TrainMemoryEstimate | None, OutOfMemoryError | None]:
    """Foretell the memory; with fewer rows at once where that makes it fit.

    Args:
        fixed: a person chose how many.
    """
    config = resolved.config
    if config.fsdp or config.deepspeed:  # what each device holds of the model is theirs to say
        return resolved, None, None
    longest = learnt[int(learnt.lengths.argmax())]
    samples = longest if isinstance(longest, tuple) else (longest,)
    row = {
        "length": int(learnt.lengths.max()),
        "supervised": sum(int(sample.loss_mask.sum()) for sample in samples),
    }
    memory = TrainMemoryEstimator(outline, world=share.world)
    plan = memory.predict(config, **row)
    while not plan.fits and plan.rows > 1 and not fixed:
        share_rows = config.batch_size // share.world
        config = replace(config, micro_batch_size=largest_divisor(share_rows, plan.rows - 1))
        plan = memory.predict(config, **row)
        resolved = ResolvedSettings(
            config, {**resolved.origins, "micro_batch_size": "what memory holds"}
        )
    if plan.fits:
        return resolved, plan, None
    return resolved, plan, memory.refuse(plan, memory.suggest(config, **row))


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


def _questions(
    config: TrainConfig, rows: TrainingData, outline: ModelMetadata
) -> list[SamplePrompt]:
    # A sharded model answers only if all devices ask it the same.
    if config.fsdp or config.deepspeed:
        return []
    if config.sample_prompts:
        return user_prompts(config.sample_prompts, outline.template)
    held = rows.prepared.eval
    if held is None or not config.samples or config.method == "dpo":
        return []
    return held_out_prompts(held, config.samples, outline.tokenizer)


def _plan(
    resolved: ResolvedSettings,
    job: TrainingJob,
    rows: TrainingData,
    per_epoch: int,
    memory: TrainMemoryEstimate | None,
    known: Sequence[str],
) -> TrainPlan:
    config, outline, report = job.config, job.outline, rows.prepared.report
    micro = config.micro_batch_size or 1
    shape = outline.shape
    held = len(job.held) if job.held else 0
    notes = [*known, *rows.notes]
    if held == 0:
        notes.append(
            "nothing is held out, so nothing measures whether it learns or only memorises: "
            "give --eval-data, or more rows"
        )
    return TrainPlan(
        settings=resolved.listed(),
        model_id=outline.resolved.model_id,
        device=str(outline.device),
        dtype=config.dtype,
        parameters=shape.linear_parameters + shape.other_parameters,
        trainable=count_trainable(config, outline),
        rows=len(job.learnt) if config.method == "dpo" else len(rows.prepared.train),
        eval_rows=held,
        tokens=int(rows.prepared.train.lengths.sum()),
        supervised_share=report.supervised_tokens / max(1, report.tokens),
        steps=job.steps,
        steps_per_epoch=per_epoch,
        micro_batch_size=micro,
        accumulation=config.batch_size // (micro * job.share.world),
        memory={str(part): size for part, size in memory.parts.items()} if memory else {},
        free_bytes=memory.free_bytes if memory else 0,
        notes=tuple(notes),
    )


def _receipt(job: TrainingJob, rows: TrainingData) -> RunLock:
    outline = job.outline
    return RunLock(
        config=config_to_json(job.config),
        base=BaseModelRef.of(outline.resolved.full_model),
        adapter=fingerprint(Path(outline.adapter)) if outline.adapter else None,
        template=outline.template.fingerprint,
        data=rows.data,
        eval_data=rows.eval_data,
        rows=rows.key,
        world=job.share.world,
    )
