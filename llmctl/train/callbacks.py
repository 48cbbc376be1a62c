"""The Trainer callback: when to evaluate, save and stop, and which events to report."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from transformers import TrainerCallback

from llmctl.train.stop import AlreadyFinished, TrainingInterrupted
from llmctl.train.trainer import SftTrainer
from llmctl.types import SampleReply, TrainEval, TrainListener, TrainStep


@dataclass(frozen=True, slots=True)
class Schedule:
    """Intervals of evaluations and checkpoints, in steps."""

    eval_every: int
    """0 never evaluates."""
    save_every: int
    patience: int | None
    """Evaluations without improvement before the training stops."""

    def evaluates_at(self, step: int, last: int) -> bool:
        return self.eval_every > 0 and (step % self.eval_every == 0 or step == last)

    def saves_at(self, step: int, last: int) -> bool:
        return step % self.save_every == 0 or step == last


class TrainingCallback(TrainerCallback):
    """Controls a trainer by a schedule, and reports its progress.

    Args:
        generate_samples: generates the sample replies with the current weights; called with the
            step.
    """

    trainer: SftTrainer

    def __init__(
        self,
        schedule: Schedule,
        listener: TrainListener,
        generate_samples: Callable[[int], tuple[SampleReply, ...]],
    ) -> None:
        self._schedule = schedule
        self._listener = listener
        self._generate_samples = generate_samples
        self._rng_state: dict[str, Any] = {}
        self._start = (0.0, 0)
        """Time in seconds and step at which this command began to train."""
        self.stopped_early = False
        self.in_optimizer = False
        """The optimizer is changing the weights."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        state = self.trainer.state
        self.trainer.restore_counters()
        self.trainer.restart_step_timer()
        step = state.global_step
        due = step == 0 or self._schedule.evaluates_at(step, state.max_steps)
        missing = self._schedule.eval_every and due and step not in self._evaluated_steps()
        if missing:
            self.trainer.evaluate()
        self.stopped_early = self._patience_exhausted()
        if step >= state.max_steps or self.stopped_early:  # the Trainer would take one step more
            if missing:
                self.trainer.save_checkpoint()
            raise AlreadyFinished
        self._start = (time.perf_counter(), step)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        trainer.loaders.batches.set_epoch(
            trainer.state.global_step // trainer.loaders.steps_per_epoch
        )

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._rng_state = _get_rng_state()
        if self.trainer.args.world_size == 1:
            self.trainer.stop.check()
        elif self._stop_requested_anywhere():
            raise TrainingInterrupted

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        if self.trainer.args.world_size == 1:
            self.trainer.stop.check()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.in_optimizer = True

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.in_optimizer = False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        state, control = self.trainer.state, self.trainer.control
        self.trainer.record_step_time()
        control.should_log = True
        control.should_evaluate = self._schedule.evaluates_at(state.global_step, state.max_steps)
        control.should_save = self._schedule.saves_at(state.global_step, state.max_steps)

    def on_log(self, *_: Any, **about: Any) -> None:
        logs: dict[str, float] = about["logs"]
        if "loss" not in logs:
            return
        state = self.trainer.state
        start, first = self._start
        done = state.global_step - first
        elapsed = time.perf_counter() - start
        self._listener(
            TrainStep(
                step=state.global_step,
                steps=state.max_steps,
                epoch=float(state.epoch or 0),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm", 0.0),
                tokens_per_s=self.trainer.tokens_per_s,
                memory_bytes=peak_memory(self.trainer.args.device),
                eta_s=elapsed / done * (state.max_steps - state.global_step) if done else 0.0,
            )
        )

    def on_evaluate(self, *_: Any, **about: Any) -> None:
        metrics: dict[str, float] = about["metrics"]
        state, control = self.trainer.state, self.trainer.control
        best = self.trainer.best_eval()
        step, loss = state.global_step, metrics["eval_loss"]
        is_best = best is None or best[0] == step
        samples = self._generate_samples(step) if state.is_world_process_zero else ()
        self._listener(TrainEval(step, loss, is_best, samples))
        if best is None:
            return
        if self._patience_exhausted():
            control.should_training_stop = self.stopped_early = True
        control.should_save |= is_best or self.stopped_early

    def _evaluated_steps(self) -> list[float]:
        return [e["step"] for e in self.trainer.state.log_history if "eval_loss" in e]

    def _patience_exhausted(self) -> bool:
        best, patience = self.trainer.best_eval(), self._schedule.patience
        if best is None or patience is None:
            return False
        return sum(step > best[0] for step in self._evaluated_steps()) >= patience

    def restore_rng_state(self) -> None:
        """Restore the state of the random generators at the start of the interrupted step."""
        if self._rng_state:
            _set_rng_state(self._rng_state)

    def _stop_requested_anywhere(self) -> bool:
        """Whether any process got a stop request; all of them get the same result."""
        trainer = self.trainer
        requested = torch.tensor(int(trainer.stop.signal is not None), device=trainer.args.device)
        return bool(trainer.accelerator.reduce(requested).item())


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: reserved by torch on CUDA, else the process's RSS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    except ImportError:  # Windows
        process: Any = psutil.Process(os.getpid())
        return int(process.memory_info().peak_wset)


def _get_rng_state() -> dict[str, Any]:
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
