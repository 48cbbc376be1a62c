"""What happens around a step: when to measure, save, stop, and what to tell about it."""

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
    """How often, in steps."""

    eval_every: int
    """0 measures never."""
    save_every: int
    patience: int | None

    def measures_at(self, step: int, last: int) -> bool:
        return self.eval_every > 0 and (step % self.eval_every == 0 or step == last)

    def saves_at(self, step: int, last: int) -> bool:
        return step % self.save_every == 0 or step == last


class TrainingCallback(TrainerCallback):
    """Steers a trainer, and reports what it does.

    Args:
        answer: answers the sample questions with the model as it is now; called with the step.
    """

    trainer: SftTrainer

    def __init__(
        self,
        rhythm: Schedule,
        listen: TrainListener,
        answer: Callable[[int], tuple[SampleReply, ...]],
    ) -> None:
        self._rhythm = rhythm
        self._listen = listen
        self._answer = answer
        self._random: dict[str, Any] = {}
        self._began = (0.0, 0)
        self.stopped_early = False
        self.in_optimizer = False
        """The weights are between two steps."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        state = self.trainer.state
        self.trainer.recall_spent()
        self.trainer.pause()
        step = state.global_step
        due = step == 0 or self._rhythm.measures_at(step, state.max_steps)
        missing = self._rhythm.eval_every and due and step not in self._measured()
        if missing:
            self.trainer.evaluate()
        self.stopped_early = self._patience_is_spent()
        if step >= state.max_steps or self.stopped_early:  # the Trainer would take one step more
            if missing:
                self.trainer.save_state()
            raise AlreadyFinished
        self._began = (time.perf_counter(), step)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        trainer.feed.batches.set_epoch(trainer.state.global_step // trainer.feed.steps_per_epoch)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._random = _random_state()
        if self.trainer.args.world_size == 1:
            self.trainer.stop.check()
        elif self._anyone_asked():
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
        self.trainer.step_done()
        control.should_log = True
        control.should_evaluate = self._rhythm.measures_at(state.global_step, state.max_steps)
        control.should_save = self._rhythm.saves_at(state.global_step, state.max_steps)

    def on_log(self, *_: Any, **about: Any) -> None:
        logs: dict[str, float] = about["logs"]
        if "loss" not in logs:
            return
        state = self.trainer.state
        start, first = self._began
        done = state.global_step - first
        spent = time.perf_counter() - start
        self._listen(
            TrainStep(
                step=state.global_step,
                steps=state.max_steps,
                epoch=float(state.epoch or 0),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm", 0.0),
                tokens_per_s=self.trainer.tokens_per_s,
                memory_bytes=peak_memory(self.trainer.args.device),
                eta_s=spent / done * (state.max_steps - state.global_step) if done else 0.0,
            )
        )

    def on_evaluate(self, *_: Any, **about: Any) -> None:
        metrics: dict[str, float] = about["metrics"]
        state, control = self.trainer.state, self.trainer.control
        best = self.trainer.best_eval()
        step, loss = state.global_step, metrics["eval_loss"]
        is_best = best is None or best[0] == step
        samples = self._answer(step) if state.is_world_process_zero else ()
        self._listen(TrainEval(step, loss, is_best, samples))
        if best is None:
            return
        if self._patience_is_spent():
            control.should_training_stop = self.stopped_early = True
        control.should_save |= is_best or self.stopped_early

    def _measured(self) -> list[float]:
        """Return the steps that were measured."""
        return [e["step"] for e in self.trainer.state.log_history if "eval_loss" in e]

    def _patience_is_spent(self) -> bool:
        best, patience = self.trainer.best_eval(), self._rhythm.patience
        if best is None or patience is None:
            return False
        return sum(step > best[0] for step in self._measured()) >= patience

    def restore_random(self) -> None:
        """Go back to the state of chance in which the step that was broken off began."""
        if self._random:
            _set_random_state(self._random)

    def _anyone_asked(self) -> bool:
        """Agree with the other processes, so that all stop before the same step."""
        trainer = self.trainer
        asked = torch.tensor(int(trainer.stop.signal is not None), device=trainer.args.device)
        return bool(trainer.accelerator.reduce(asked).item())


def peak_memory(device: torch.device) -> int:
    """Return the most bytes used so far: of the card by torch, else resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    except ImportError:  # Windows
        process: Any = psutil.Process(os.getpid())
        return int(process.memory_info().peak_wset)


def _random_state() -> dict[str, Any]:
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
