"""The loop: a thin `transformers.Trainer` with our loss, our batches and whole checkpoints."""

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from llmctl.train.checkpoints import Checkpoints, is_disk_full
from llmctl.train.data.dataloaders import ROWS_KEY, TOKENS_KEY, DataLoaders
from llmctl.train.kernels.cross_entropy import IGNORE_INDEX, ChunkedCrossEntropy, model_loss
from llmctl.train.stop import StopRequest, TrainingDivergedError

_RATE_STEPS = 10
"""Steps over which the speed is taken."""
_SPENT = "llmctl"
"""Under which name a saved state says what went into it."""


class SftTrainer(Trainer):
    """Teaches a model the tokens that carry a label.

    Args:
        head: computes the loss where labels are; `None` takes the model's own loss.
        save_with: writes what else belongs in each checkpoint.
        name_rows: says which rows these are, for a person.
        warn: told what went wrong and was got over.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        feed: DataLoaders,
        head: ChunkedCrossEntropy | None,
        checkpoints: Checkpoints,
        stop: StopRequest,
        save_with: Callable[[Path], None],
        name_rows: Callable[[list[int]], str],
        warn: Callable[[str], None],
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model=model, args=args, callbacks=callbacks)
        # Whatever the model's forward takes: our loss is a share of the whole step's.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.feed = feed
        self.stop = stop
        self.tokens_per_s = 0.0
        """Over the last few steps."""
        self._head = head
        self._checkpoints = checkpoints
        self._save_with = save_with
        self._name_rows = name_rows
        self._warn = warn
        self._rows: list[int] = []
        self.tokens = 0
        self._times: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS + 1)
        self._seconds = 0.0
        self._began = time.perf_counter()

    # What is fed in

    def get_train_dataloader(self) -> Any:
        return self.feed.train_loader()

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader.dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count what is learnt in a step, on all devices."""
        counts = [self._items(batch) for batch in batch_samples]
        count = torch.stack(counts).sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        # A step of nothing but rows without a target would divide by 0.
        return count.clamp(min=1)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        return 0  # nobody asks, and counting parameters takes a while

    # The loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this batch's share of the mean loss per learnt token of the step."""
        assert not return_outputs, "logits are not kept"
        assert num_items_in_batch is not None
        # Gradients are averaged over the devices, and what is wanted is their sum.
        return self._loss_sum(model, inputs) * (self.args.world_size / num_items_in_batch)

    def _items(self, inputs: dict[str, Any]) -> Tensor:
        """Count what the loss of a batch is a mean over."""
        learnt: Tensor = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        return learnt

    def _loss_sum(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs = {n: value for n, value in inputs.items() if n not in (ROWS_KEY, TOKENS_KEY)}
        return model_loss(model, inputs) if self._head is None else self._head.loss(model, inputs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self._rows += [row if row >= 0 else ~row for row in inputs[ROWS_KEY]]
        self.tokens += inputs[TOKENS_KEY]
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise self._diverged("loss", inputs[ROWS_KEY])
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        # With float16 the first gradients overflow by design, and their step is left out.
        checked = self.accelerator.scaler is None and norm is not None
        if checked and not math.isfinite(float(norm)):
            raise self._diverged("gradient", self._rows)
        return norm

    def _diverged(self, what: str, rows: list[int]) -> TrainingDivergedError:
        newest = self._checkpoints.newest()
        since = f"the last good state is {newest.path}" if newest else "nothing was saved before it"
        return TrainingDivergedError(
            f"the {what} of step {self.state.global_step + 1} is no number; {since}\n"
            f"the step learnt from {self._name_rows(rows)}",
            hint="look at these rows; then try a lower --learning-rate, or --dtype float32",
        )

    # What comes out

    def step_done(self) -> None:
        """Take the time of a step."""
        self._seconds += time.perf_counter() - self._times[-1][0]
        self._times.append((time.perf_counter(), self.tokens))
        self._rows = []
        (start, before), (now, after) = self._times[0], self._times[-1]
        if now > start:
            self.tokens_per_s = (after - before) / (now - start) * self.args.world_size

    def recall_spent(self) -> None:
        """Count on from what went into the state that was loaded, if one was."""
        saved: Any = self.state.stateful_callbacks
        if (spent := saved.get(_SPENT)) is not None:
            self.tokens, self._seconds = spent["tokens"], spent["step_seconds"]
            self._began -= spent["seconds"]

    def _note_spent(self) -> None:
        saved: Any = self.state.stateful_callbacks
        saved[_SPENT] = {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "step_seconds": self._seconds,
        }

    @property
    def seconds(self) -> float:
        """Of all stretches that led here, measurements included."""
        return time.perf_counter() - self._began

    @property
    def mean_tokens_per_s(self) -> float:
        """Over all steps, what is between them aside."""
        return self.tokens / self._seconds * self.args.world_size if self._seconds else 0.0

    def pause(self) -> None:
        """Do not count the time since the last step."""
        self._times.clear()
        self._times.append((time.perf_counter(), self.tokens))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the mean loss per learnt token on what is held out."""
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in self.feed.eval_loader():
                self._stop_alone()
                inputs = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    loss = self._loss_sum(model, inputs)
                sums += torch.stack([loss.double(), self._items(inputs)])
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums)
        metrics = {"eval_loss": float(sums[0] / sums[1])}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.pause()
        return metrics

    def _stop_alone(self) -> None:
        # Of several processes none may leave while the others wait for it.
        if self.args.world_size == 1:
            self.stop.check()

    def best_eval(self) -> tuple[int, float] | None:
        """Return step and loss of the best measurement so far, the one before the start aside."""
        history = [e for e in self.state.log_history if "eval_loss" in e]
        found = [(int(e["step"]), e["eval_loss"]) for e in history if e["step"] > 0]
        return min(found, key=lambda entry: entry[1], default=None)

    def save_state(self) -> None:
        """Save the state of the last whole step now."""
        self._save_checkpoint(self.model_wrapped)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        try:
            self._save_whole(model, trial)
        except Exception as error:
            if self.args.world_size > 1 or not is_disk_full(error):
                raise
            newest = self._checkpoints.newest()
            self._warn(
                f"the disk is full: step {self.state.global_step} is not saved, the last whole "
                f"checkpoint is {newest.path.name if newest else 'none'}; the training goes on"
            )

    def _save_whole(self, model: Any, trial: Any) -> None:
        best = self.best_eval()
        self._note_spent()
        output, owner = self.args.output_dir, self.args.should_save
        with self._checkpoints.staging(owner=owner) as aside:
            self.args.output_dir = str(aside)
            try:
                super()._save_checkpoint(model, trial)
                if owner:
                    self._save_with(aside / f"checkpoint-{self.state.global_step}")
            finally:
                self.args.output_dir = output
            if self.args.world_size > 1:
                self.accelerator.wait_for_everyone()
            if owner:
                self._checkpoints.commit(self.state.global_step, best and best[0])

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            save_weights(model, Path(output_dir or str(self.args.output_dir)), state_dict)


def save_weights(model: Any, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write an adapter, or a whole model where all of it was taught."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        # Otherwise PEFT looks on the hub whether the vocabulary has grown.
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder), state_dict=state)
