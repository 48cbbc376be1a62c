"""One training run: model, trainer and data loaders, built and rebuilt until the last step."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from llmctl.config import TrainConfig
from llmctl.config.finetune import largest_divisor
from llmctl.engine.error_translation import is_out_of_memory
from llmctl.engine.loading.trainable import load_for_training
from llmctl.errors import ConfigError, LlmctlError, OutOfMemoryError
from llmctl.train.callbacks import Schedule, TrainingCallback, peak_memory
from llmctl.train.checkpoints import Checkpoint, Checkpoints
from llmctl.train.data.collate import SftCollator, packing_is_isolated
from llmctl.train.data.dataloaders import DataLoaders
from llmctl.train.kernels.cross_entropy import ChunkedCrossEntropy, matches_model_loss
from llmctl.train.samples import SampleGenerator, SampleLog
from llmctl.train.setup.plan import TrainingJob
from llmctl.train.setup.target_modules import may_train_experts
from llmctl.train.setup.trainable_parameters import (
    make_trainable,
    optimize_for_training,
    weights_dtype,
)
from llmctl.train.setup.trainer_arguments import training_arguments
from llmctl.train.stop import AlreadyFinished, StopRequest, TrainingInterrupted
from llmctl.train.trainer import SftTrainer
from llmctl.types import (
    ProgressCallback,
    SampleReply,
    TrainListener,
    TrainNote,
    ignore_progress,
)

_ATTENTION = {"flash": "flash_attention_2"}
"""Setting -> Transformers' name of the implementation, where they differ."""


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """Result of a training run."""

    kept: Checkpoint
    """The checkpoint whose weights are the result."""
    best_step: int | None
    """Step of the best evaluation; `None` without evaluations."""
    steps: int
    seconds: float
    losses: tuple[tuple[int, float], ...]
    """Step and training loss."""
    eval_losses: tuple[tuple[int, float], ...]
    tokens_per_s: float
    peak_bytes: int
    samples: dict[int, tuple[SampleReply, ...]]
    """Sample replies by step."""
    stopped_early: bool


class TrainRun:
    """Builds a trainer for a job, and rebuilds it with smaller micro-batches on out of memory.

    Args:
        write_extra_files: writes the tokenizer and the provenance into a folder of weights.
    """

    def __init__(
        self,
        job: TrainingJob,
        listener: TrainListener,
        stop: StopRequest,
        write_extra_files: Callable[[Path], None],
    ) -> None:
        self._job = job
        self._write_extra_files = write_extra_files
        self._listener = listener
        self._stop = stop
        self._checkpoints = Checkpoints(job.folder, job.config.keep_checkpoints)
        self._log = SampleLog(job.folder)
        self._micro = job.config.micro_batch_size or 1
        self._chunked_loss: bool | None = None
        """Whether the chunked loss equals the model's own; `None` before they are compared."""

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        """Load the weights and make the trainable parameters.

        Raises:
            ConfigError: packed samples would influence each other in this model.
            LlmctlError: as `load_for_training` and `make_trainable`.
        """
        job, config = self._job, self._job.config
        model = load_for_training(
            job.metadata,
            dtype=weights_dtype(config),
            attention=_ATTENTION.get(config.attention, config.attention),
            experts=not may_train_experts(config.target_modules),
            progress=progress,
        )
        self._model = make_trainable(model, config, job.metadata.adapter)
        self._autocast = optimize_for_training(self._model, config, job.metadata.device.type)
        if config.packing:
            self._check_packing()

    def _check_packing(self) -> None:
        metadata = self._job.metadata
        if not packing_is_isolated(self._model, self._sft_collator()):
            raise ConfigError(
                f"packing does not work with {metadata.config.model_type} models, such as "
                f"{metadata.resolved.model_id}: packed samples would influence each other",
                hint="--no-packing",
            )

    def train(self, resume: Checkpoint | None = None) -> TrainOutcome:
        """Train until the last step, or until a stop is requested.

        Raises:
            TrainingInterrupted: a stop was requested. The state is saved.
            TrainingDivergedError: the loss or its gradient is NaN or infinite.
            OutOfMemoryError: not even one row fits.
        """
        while True:
            trainer, callback = self._build()
            failure = None
            try:
                with _ignore_warnings():
                    trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
            except TrainingInterrupted:
                callback.restore_rng_state()
                trainer.save_checkpoint()
                raise
            except AlreadyFinished:
                pass
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0]
            # Outside the handler, where the exception no longer keeps tensors alive.
            if failure is None:
                return self._outcome(trainer, callback)
            resume = self._reduce_micro_batch(trainer, callback, failure) or resume
            del trainer, callback
            _free_memory()

    def _reduce_micro_batch(
        self, trainer: SftTrainer, callback: TrainingCallback, reason: str
    ) -> Checkpoint | None:
        """Halve the micro-batch; return the last completed step, saved, if there is one.

        Raises:
            OutOfMemoryError: a smaller micro-batch is not possible or does not help.
        """
        job, step = self._job, trainer.state.global_step
        smaller = largest_divisor(self._micro, self._micro // 2) if self._micro > 1 else 0
        where = f"out of memory in step {step + 1} with a micro-batch of {self._micro}"
        if job.process.world_size > 1 or callback.in_optimizer or not smaller:
            raise OutOfMemoryError(
                f"{where}: {reason}", hint=_memory_hint(job.config, smaller, callback)
            )
        self._model.zero_grad(set_to_none=True)
        _free_memory()
        if step:
            trainer.save_checkpoint()
        accumulation = trainer.loaders.batches.accumulation * self._micro // smaller
        self._micro = smaller
        self._listener(
            TrainNote(
                f"{where}: training continues with micro-batches of {smaller}, {accumulation} per "
                f"step; the batch size stays {job.config.batch_size}"
            )
        )
        return self._checkpoints.newest() if step else None

    def _build(self) -> tuple[SftTrainer, TrainingCallback]:
        job, config = self._job, self._job.config
        create_trainer, create_arguments, collate = self._components()
        loaders = DataLoaders(
            job.train_set,
            job.eval_set,
            collate,
            batch_size=config.batch_size,
            micro_batch_size=self._micro,
            seed=config.seed,
            process=job.process,
        )
        generator = SampleGenerator(
            job.sample_prompts,
            job.metadata.tokenizer,
            job.metadata.eos_ids,
            config.sample_tokens,
            self._stop.check if job.process.world_size == 1 else lambda: None,
        )

        def generate_samples(step: int) -> tuple[SampleReply, ...]:
            replies = generator.generate(self._model)
            self._log.add(step, replies)
            return replies

        callback = TrainingCallback(
            Schedule(
                eval_every=config.eval_every or 0 if loaders.has_eval else 0,
                save_every=config.save_every or job.steps,
                patience=config.patience,
            ),
            self._listener,
            generate_samples,
        )
        trainer = create_trainer(
            self._model,
            training_arguments(
                config,
                device=job.metadata.device,
                folder=job.folder,
                steps=job.steps,
                steps_per_epoch=loaders.steps_per_epoch,
                micro_batch_size=self._micro,
                accumulation=loaders.batches.accumulation,
                world_size=job.process.world_size,
                autocast=self._autocast,
                create=create_arguments,
            ),
            loaders=loaders,
            loss=self._loss(loaders),
            checkpoints=self._checkpoints,
            stop=self._stop,
            write_extra_files=self._write_extra_files,
            describe_rows=loaders.describe_rows,
            warn=lambda text: self._listener(TrainNote(text)),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        callback.trainer = trainer
        return trainer, callback

    def _components(
        self,
    ) -> tuple[Callable[..., SftTrainer], Callable[..., Any], Callable[..., Any]]:
        """Return the factories of trainer and arguments, and the collator."""
        config = self._job.config
        if config.method != "dpo":
            return SftTrainer, TrainingArguments, self._sft_collator()
        from llmctl.train import dpo

        trainer = partial(dpo.DpoTrainer, tokenizer=self._job.metadata.tokenizer)
        pad_id, multiple_of = self._padding()
        collator = dpo.PreferenceCollator(pad_id=pad_id, multiple_of=multiple_of)
        return trainer, dpo.dpo_arguments(config), collator

    def _sft_collator(self) -> SftCollator:
        pad_id, multiple_of = self._padding()
        flash = self._job.config.attention == "flash"
        return SftCollator(pad_id=pad_id, multiple_of=multiple_of, flash=flash)

    def _padding(self) -> tuple[int, int]:
        """Return the padding token, and the number that the width of a batch is a multiple of."""
        metadata = self._job.metadata
        return metadata.eos_ids[0], 8 if metadata.device.type == "cuda" else 1

    def _loss(self, loaders: DataLoaders) -> ChunkedCrossEntropy | None:
        """Return the chunked loss where it equals the model's own loss, else `None`."""
        config = self._job.config
        if config.fsdp or config.deepspeed or config.method == "dpo":
            return None
        model = self._model
        loss = ChunkedCrossEntropy.for_model(model)
        if loss is None or self._chunked_loss is False:
            return None
        if self._chunked_loss is None:
            batch = loaders.collate_rows([int(loaders.lengths.argmin())])
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            self._chunked_loss = matches_model_loss(model, loss, inputs)
            if not self._chunked_loss:
                self._listener(
                    TrainNote(
                        "this model transforms its logits after the output layer: the model's own "
                        "loss is used, which needs more memory"
                    )
                )
        return loss if self._chunked_loss else None

    def _outcome(self, trainer: SftTrainer, callback: TrainingCallback) -> TrainOutcome:
        """Collect the results.

        Raises:
            LlmctlError: the weights to keep were not saved, because the disk was full.
        """
        history, last = trainer.state.log_history, trainer.state.global_step
        best = trainer.best_eval()
        step = best[0] if best and self._job.config.final == "best" else last
        kept = self._checkpoints.at(step)
        if kept is None:
            newest = self._checkpoints.newest()
            raise LlmctlError(
                f"the weights of step {step} could not be saved; the last checkpoint is "
                f"{newest.path if newest else 'none'}",
                hint="free some disk space, then continue with --resume",
            )
        return TrainOutcome(
            kept=kept,
            best_step=best and best[0],
            steps=last,
            seconds=trainer.seconds,
            losses=tuple((int(e["step"]), e["loss"]) for e in history if "loss" in e),
            eval_losses=tuple(
                (int(e["step"]), e["eval_loss"]) for e in history if "eval_loss" in e
            ),
            tokens_per_s=trainer.mean_tokens_per_s,
            peak_bytes=peak_memory(trainer.args.device),
            samples=self._log.read(),
            stopped_early=callback.stopped_early,
        )


def _memory_hint(config: TrainConfig, smaller: int, callback: TrainingCallback) -> str:
    """Suggest the option that saves memory at the least cost.

    Args:
        smaller: the next smaller micro-batch, 0 if there is none.
    """
    if callback.in_optimizer:
        return "try --optimizer adamw_8bit, or a smaller --rank"
    if smaller:
        return f"try --micro-batch-size {smaller}"
    if not config.gradient_checkpointing:
        return "try --gradient-checkpointing"
    if config.weights_quant != "4bit" and config.method != "full":
        return "try --method qlora"
    return f"try --max-length {max(128, (config.max_length or 0) // 2)}, or a smaller model"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Keep the warnings of libraries off the terminal: llmctl reports what matters as notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
