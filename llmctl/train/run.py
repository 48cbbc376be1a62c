"""One training from the loaded model to its result: what is built, and what happens on the way."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from llmctl.config import TrainConfig
from llmctl.config.finetune import largest_divisor
from llmctl.data.dataset import PairDataset, TokenDataset
from llmctl.engine.error_translation import is_out_of_memory
from llmctl.engine.loading.trainable import ModelMetadata, load_for_training
from llmctl.errors import LlmctlError, OutOfMemoryError
from llmctl.train.callbacks import Schedule, TrainingCallback, peak_memory
from llmctl.train.checkpoints import Checkpoint, Checkpoints
from llmctl.train.data.collate import SftCollator
from llmctl.train.data.dataloaders import DataLoaders, TrainDataset
from llmctl.train.distributed import ProcessInfo
from llmctl.train.kernels.cross_entropy import ChunkedCrossEntropy, matches_model_loss
from llmctl.train.samples import SampleGenerator, SampleLog, SamplePrompt
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

_SHOWN_ROWS = 8


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training that is ready to begin: nothing is open any more."""

    config: TrainConfig
    """Resolved."""
    outline: ModelMetadata
    learnt: TrainDataset
    held: TokenDataset | PairDataset | None
    """What is measured on."""
    questions: Sequence[SamplePrompt]
    steps: int
    folder: Path
    share: ProcessInfo


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What a training came to."""

    kept: Checkpoint
    """The state whose weights are the result."""
    best_step: int | None
    """Of the best measurement, where something was measured."""
    steps: int
    seconds: float
    losses: tuple[tuple[int, float], ...]
    eval_losses: tuple[tuple[int, float], ...]
    tokens_per_s: float
    peak_bytes: int
    samples: dict[int, tuple[SampleReply, ...]]
    stopped_early: bool


class TrainRun:
    """Builds a trainer for a job, and begins again with less when memory runs out.

    Args:
        save_with: writes what goes beside weights into a folder: tokenizer, provenance.
    """

    def __init__(
        self,
        job: TrainingJob,
        listen: TrainListener,
        stop: StopRequest,
        save_with: Callable[[Path], None],
    ) -> None:
        self._job = job
        self._save_with = save_with
        self._listen = listen
        self._stop = stop
        self._checkpoints = Checkpoints(job.folder, job.config.keep_checkpoints)
        self._log = SampleLog(job.folder)
        self._micro = job.config.micro_batch_size or 1
        self._lean: bool | None = None
        """Whether the lean head is the model's own loss; `None` before it was tried."""

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        """Read the weights and make what learns. Raises as `load_for_training`."""
        job, config = self._job, self._job.config
        model = load_for_training(
            job.outline,
            dtype=weights_dtype(config),
            attention=_ATTENTION.get(config.attention, config.attention),
            progress=progress,
        )
        self._model = make_trainable(model, config, job.outline.adapter)
        self._autocast = optimize_for_training(self._model, config, job.outline.device.type)

    def train(self, resume: Checkpoint | None = None) -> TrainOutcome:
        """Teach until the last step, or until somebody asks to stop.

        Raises:
            Interrupted: somebody asked. The state is saved.
            TrainingDivergedError: the loss is no number.
            OutOfMemoryError: not even one row fits.
        """
        while True:
            trainer, watch = self._build()
            failed = None
            try:
                with _quiet():
                    trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
            except TrainingInterrupted:
                watch.restore_random()
                trainer.save_state()
                raise
            except AlreadyFinished:
                pass
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = str(error).splitlines()[0]
            # Past the handler, where the exception no longer holds what was in memory.
            if failed is None:
                return self._outcome(trainer, watch)
            resume = self._shrink(trainer, watch, failed) or resume
            del trainer, watch
            _free()

    def _shrink(
        self, trainer: SftTrainer, watch: TrainingCallback, reason: str
    ) -> Checkpoint | None:
        """Halve what a device holds at once; return the last whole step, saved, if there is one."""
        job, step = self._job, trainer.state.global_step
        smaller = largest_divisor(self._micro, self._micro // 2) if self._micro > 1 else 0
        where = f"memory ran out in step {step + 1}, with {self._micro} rows at once"
        if job.share.world > 1 or watch.in_optimizer or not smaller:
            raise OutOfMemoryError(f"{where}: {reason}", hint=_less(job.config, smaller, watch))
        self._model.zero_grad(set_to_none=True)
        _free()
        if step:
            trainer.save_state()
        accumulation = trainer.feed.batches.accumulation * self._micro // smaller
        self._micro = smaller
        self._listen(
            TrainNote(
                f"{where}: it goes on from there with {smaller}, {accumulation} times per step, "
                f"so that a step is still {job.config.batch_size} rows"
            )
        )
        return self._checkpoints.newest() if step else None

    def _build(self) -> tuple[SftTrainer, TrainingCallback]:
        job, config = self._job, self._job.config
        trainer_kind, arguments_kind, collate = self._kinds()
        feed = DataLoaders(
            job.learnt,
            job.held,
            collate,
            batch_size=config.batch_size,
            micro_batch_size=self._micro,
            seed=config.seed,
            share=job.share,
        )
        sampler = SampleGenerator(
            job.questions,
            job.outline.tokenizer,
            job.outline.eos_ids,
            config.sample_tokens,
            self._stop.check if job.share.world == 1 else lambda: None,
        )

        def answer(step: int) -> tuple[SampleReply, ...]:
            replies = sampler.ask(self._model)
            self._log.add(step, replies)
            return replies

        watch = TrainingCallback(
            Schedule(
                eval_every=config.eval_every or 0 if feed.measures else 0,
                save_every=config.save_every or job.steps,
                patience=config.patience,
            ),
            self._listen,
            answer,
        )
        trainer = trainer_kind(
            self._model,
            training_arguments(
                config,
                device=job.outline.device,
                folder=job.folder,
                steps=job.steps,
                steps_per_epoch=feed.steps_per_epoch,
                micro_batch_size=self._micro,
                accumulation=feed.batches.accumulation,
                world=job.share.world,
                autocast=self._autocast,
                kind=arguments_kind,
            ),
            feed=feed,
            head=self._head(feed),
            checkpoints=self._checkpoints,
            stop=self._stop,
            save_with=self._save_with,
            name_rows=lambda rows: _name_rows(feed, rows),
            warn=lambda text: self._listen(TrainNote(text)),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        watch.trainer = trainer
        return trainer, watch

    def _kinds(self) -> tuple[Callable[..., SftTrainer], Callable[..., Any], Callable[..., Any]]:
        """Return what makes the trainer, its arguments, and its batches."""
        outline, config = self._job.outline, self._job.config
        pad_id = outline.eos_ids[0]
        multiple_of = 8 if outline.device.type == "cuda" else 1
        if config.method == "dpo":
            from llmctl.train import dpo

            trainer = partial(dpo.DpoTrainer, tokenizer=outline.tokenizer)
            collator = dpo.PreferenceCollator(pad_id=pad_id, multiple_of=multiple_of)
            return trainer, dpo.dpo_arguments(config), collator
        flash = config.attention == "flash"
        return (
            SftTrainer,
            TrainingArguments,
            SftCollator(pad_id=pad_id, multiple_of=multiple_of, flash=flash),
        )

    def _head(self, feed: DataLoaders) -> ChunkedCrossEntropy | None:
        """Choose how the loss is computed: by the lean head, where it is the model's own loss."""
        config = self._job.config
        if config.fsdp or config.deepspeed or config.method == "dpo":
            return None
        model = self._model
        head = ChunkedCrossEntropy.of(model)
        if head is None or self._lean is False:
            return None
        if self._lean is None:
            batch = feed.collate_rows([int(feed.lengths.argmin())])
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            self._lean = matches_model_loss(model, head, inputs)
            if not self._lean:
                self._listen(
                    TrainNote(
                        "this model does more to its logits than its head says: its own loss is "
                        "taken, which needs more memory"
                    )
                )
        return head if self._lean else None

    def _outcome(self, trainer: SftTrainer, watch: TrainingCallback) -> TrainOutcome:
        history, last = trainer.state.log_history, trainer.state.global_step
        best = trainer.best_eval()
        wanted = best[0] if best and self._job.config.final == "best" else last
        kept = self._checkpoints.at(wanted)
        if kept is None:
            newest = self._checkpoints.newest()
            raise LlmctlError(
                f"the weights of step {wanted} could not be saved; the last whole checkpoint is "
                f"{newest.path if newest else 'none'}",
                hint="free some space, then --resume goes on from there",
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
            stopped_early=watch.stopped_early,
        )


def _less(config: TrainConfig, smaller: int, watch: TrainingCallback) -> str:
    """Name the setting that takes less memory."""
    if watch.in_optimizer:
        return "try --optimizer adamw_8bit, or a smaller --rank"
    if smaller:
        return f"try --micro-batch-size {smaller}"
    if not config.gradient_checkpointing:
        return "try --gradient-checkpointing"
    if config.weights_quant != "4bit" and config.method != "full":
        return "try --method qlora"
    return f"try --max-length {max(128, (config.max_length or 0) // 2)}, or a smaller model"


def _name_rows(feed: DataLoaders, rows: list[int]) -> str:
    """Say where rows stand, for a person: `data.jsonl:12, data.jsonl:40`."""
    origins = [f"{o.file}:{o.line}" for row in rows for o in feed.origins(row)]
    shown = ", ".join(dict.fromkeys(origins[:_SHOWN_ROWS]))
    more = len(origins) - _SHOWN_ROWS
    return shown + (f" and {more} more" if more > 0 else "")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings off the terminal: what matters is told by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
