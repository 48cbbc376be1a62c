"""The plan of a training: job, report for the user, run lock and memory check, without weights."""

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
from llmctl.train.samples import SamplePrompt, held_out_prompts, user_prompts
from llmctl.train.setup.defaults import (
    ResolvedSettings,
    resolve_for_data,
    resolve_for_model,
    resolve_schedule,
    settings_from_adapter,
)
from llmctl.train.setup.memory import TrainMemoryEstimate, TrainMemoryEstimator
from llmctl.train.setup.run_lock import RunLock, config_to_json
from llmctl.train.setup.trainable_parameters import count_trainable, mixture_note
from llmctl.types import Progress, ProgressCallback, TrainPlan, ignore_progress


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that a training run needs, with all settings resolved."""

    config: TrainConfig
    metadata: ModelMetadata
    train_set: TrainDataset
    eval_set: TokenDataset | PairDataset | None
    sample_prompts: Sequence[SamplePrompt]
    steps: int
    folder: Path
    """Output folder, absolute."""
    process: ProcessInfo


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """A training job with its plan and its run lock."""

    job: TrainingJob
    data: TrainingData
    plan: TrainPlan
    run_lock: RunLock
    memory_error: OutOfMemoryError | None
    """The error to raise if the job does not fit into memory, with settings that do."""


def prepare_training(
    settings: ResolvedConfig[TrainConfig],
    process: ProcessInfo,
    progress: ProgressCallback = ignore_progress,
) -> PreparedTraining:
    """Read the model's metadata and the rows, resolve all settings, and predict the memory.

    Raises:
        ConfigError, DataError, TemplateError: the settings, rows or template cannot be used.
        ModelNotFoundError, ModelLoadError, UnsafeModelError: as `load_model`.
    """
    config = settings.values
    metadata = load_model_metadata(config.model_spec(), progress)
    if config.method == "dpo":
        from llmctl.train.dpo import check_dpo_settings  # raises if the extra is missing

        check_dpo_settings(config, metadata.adapter)
    provenance = check_provenance(
        metadata.resolved,
        adapter=metadata.adapter,
        template=metadata.template.fingerprint,
        template_chosen=config.chat_template is not None,
    )
    if metadata.adapter is not None:
        settings = settings_from_adapter(settings, metadata.adapter)
    resolved = resolve_for_model(settings, metadata)
    data = read_training_data(resolved.config, metadata, progress)
    resolved = resolve_for_data(resolved, data.prepared, process.world_size, metadata.device.type)
    config = resolved.config
    train_set, eval_set = _datasets(config, data.prepared)
    progress(Progress("estimating memory"))
    resolved, memory, memory_error = _fit_micro_batch(
        resolved,
        metadata,
        train_set,
        process.world_size,
        fixed=settings.values.micro_batch_size is not None,
    )
    steps_per_epoch = len(
        LengthGroupedBatchSampler(train_set.lengths, config.batch_size, seed=config.seed)
    )
    resolved, steps = resolve_schedule(resolved, steps_per_epoch, has_eval=eval_set is not None)
    job = TrainingJob(
        config=resolved.config,
        metadata=metadata,
        train_set=train_set,
        eval_set=eval_set,
        sample_prompts=_sample_prompts(resolved.config, data, metadata),
        steps=steps,
        folder=Path(config.output).expanduser().absolute(),
        process=process,
    )
    plan = _plan(resolved, job, data, steps_per_epoch, memory, provenance.notes)
    return PreparedTraining(job, data, plan, _run_lock(job, data), memory_error)


def _datasets(
    config: TrainConfig, prepared: TokenizedDataset
) -> tuple[TrainDataset, TokenDataset | PairDataset | None]:
    """Return the training and evaluation datasets in the form that the method needs."""
    if config.method == "dpo":
        return PairDataset(prepared.train), prepared.eval and PairDataset(prepared.eval)
    if config.packing:
        return PackedDataset(prepared.train, config.max_length or 0), prepared.eval
    return prepared.train, prepared.eval


def _fit_micro_batch(
    resolved: ResolvedSettings,
    metadata: ModelMetadata,
    train_set: TrainDataset,
    world_size: int,
    *,
    fixed: bool,
) -> tuple[ResolvedSettings, TrainMemoryEstimate | None, OutOfMemoryError | None]:
    """Predict the memory; reduce the micro-batch size until the job fits.

    Args:
        fixed: the micro-batch size was chosen, and is not reduced.
    """
    config = resolved.config
    if config.fsdp or config.deepspeed:  # they decide what each device holds
        return resolved, None, None
    longest = train_set[int(train_set.lengths.argmax())]
    samples = longest if isinstance(longest, tuple) else (longest,)
    row = {
        "length": int(train_set.lengths.max()),
        "supervised": sum(int(sample.loss_mask.sum()) for sample in samples),
    }
    estimator = TrainMemoryEstimator(metadata, world_size=world_size)
    estimate = estimator.predict(config, **row)
    while not estimate.fits and estimate.rows > 1 and not fixed:
        smaller = largest_divisor(config.batch_size // world_size, estimate.rows - 1)
        config = replace(config, micro_batch_size=smaller)
        estimate = estimator.predict(config, **row)
        resolved = ResolvedSettings(
            config, {**resolved.origins, "micro_batch_size": "limited by memory"}
        )
    if estimate.fits:
        return resolved, estimate, None
    suggestions = estimator.suggest(config, **row)
    return resolved, estimate, estimator.out_of_memory_error(estimate, suggestions)


def _sample_prompts(
    config: TrainConfig, data: TrainingData, metadata: ModelMetadata
) -> list[SamplePrompt]:
    # Generating with a sharded model would need all devices to run the same prompts.
    if config.fsdp or config.deepspeed:
        return []
    if config.sample_prompts:
        return user_prompts(config.sample_prompts, metadata.template)
    eval_set = data.prepared.eval
    if eval_set is None or not config.samples or config.method == "dpo":
        return []
    return held_out_prompts(eval_set, config.samples, metadata.tokenizer)


def _plan(
    resolved: ResolvedSettings,
    job: TrainingJob,
    data: TrainingData,
    steps_per_epoch: int,
    memory: TrainMemoryEstimate | None,
    provenance_notes: Sequence[str],
) -> TrainPlan:
    config, metadata, report = job.config, job.metadata, data.prepared.report
    micro = config.micro_batch_size or 1
    shape = metadata.shape
    eval_rows = len(job.eval_set) if job.eval_set else 0
    notes = [*provenance_notes, *data.notes]
    if (note := mixture_note(config, metadata)) is not None:
        notes.append(note)
    if eval_rows == 0:
        notes.append(
            "there is no evaluation set, so overfitting cannot be detected: use --eval-data, or "
            "more rows"
        )
    return TrainPlan(
        settings=resolved.listed(),
        model_id=metadata.resolved.model_id,
        device=str(metadata.device),
        dtype=config.dtype,
        parameters=shape.linear_parameters + shape.other_parameters,
        trainable=count_trainable(config, metadata),
        rows=len(job.train_set) if config.method == "dpo" else len(data.prepared.train),
        eval_rows=eval_rows,
        tokens=int(data.prepared.train.lengths.sum()),
        supervised_share=report.supervised_tokens / max(1, report.tokens),
        steps=job.steps,
        steps_per_epoch=steps_per_epoch,
        micro_batch_size=micro,
        accumulation=config.batch_size // (micro * job.process.world_size),
        memory={str(part): size for part, size in memory.parts.items()} if memory else {},
        free_bytes=memory.free_bytes if memory else 0,
        notes=tuple(notes),
    )


def _run_lock(job: TrainingJob, data: TrainingData) -> RunLock:
    metadata = job.metadata
    return RunLock(
        config=config_to_json(job.config),
        base=BaseModelRef.of(metadata.resolved.full_model),
        adapter=fingerprint(Path(metadata.adapter)) if metadata.adapter else None,
        template=metadata.template.fingerprint,
        data=data.data,
        eval_data=data.eval_data,
        rows=data.key,
        world=job.process.world_size,
    )
