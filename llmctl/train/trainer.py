"""A thin `transformers.Trainer` with llmctl's loss, batches and atomic checkpoints."""

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
"""Steps over which the speed is averaged."""
_COUNTERS_KEY = "llmctl"
"""Key of the counters (seconds, tokens) in `trainer_state.json`."""


class SftTrainer(Trainer):
    """Supervised fine-tuning: the loss is the mean cross entropy of the labelled tokens of a step.

    Args:
        loss: computes the loss at labelled positions only; `None` uses the model's own loss.
        write_extra_files: writes the other files of a checkpoint into its folder.
        describe_rows: returns the source locations of rows, for an error message.
        warn: called with a sentence about a problem that does not stop the training.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        loaders: DataLoaders,
        loss: ChunkedCrossEntropy | None,
        checkpoints: Checkpoints,
        stop: StopRequest,
        write_extra_files: Callable[[Path], None],
        describe_rows: Callable[[list[int]], str],
        warn: Callable[[str], None],
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model=model, args=args, callbacks=callbacks)
        # Independent of the model's forward: our loss is already divided by the step's targets.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.loaders = loaders
        self.stop = stop
        self.tokens_per_s = 0.0
        """Over the last few steps, without padding."""
        self._chunked_loss = loss
        self._checkpoints = checkpoints
        self._write_extra_files = write_extra_files
        self._describe_rows = describe_rows
        self._warn = warn
        self._rows: list[int] = []
        self.tokens = 0
        """Tokens trained on by this process, without padding."""
        self._times: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS + 1)
        self._seconds = 0.0
        self._began = time.perf_counter()

    # Batches

    def get_train_dataloader(self) -> Any:
        return self.loaders.train_loader()

    def num_examples(self, dataloader: Any) -> int:
        return len(dataloader.dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count the targets of a step on all devices."""
        counts = [self._count_targets(batch) for batch in batch_samples]
        count = torch.stack(counts).sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        # A step whose rows have no target would divide by 0.
        return count.clamp(min=1)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002  signature of Transformers
        return 0  # unused, and counting parameters takes a while

    # Loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this batch's part of the mean loss per target of the step, a scalar tensor."""
        assert not return_outputs, "logits are not kept"
        assert num_items_in_batch is not None
        # DDP averages gradients over the devices, but their sum is needed.
        return self._loss_sum(model, inputs) * (self.args.world_size / num_items_in_batch)

    def _count_targets(self, inputs: dict[str, Any]) -> Tensor:
        """Count the targets of a batch: its labelled tokens. Returns a scalar tensor."""
        targets: Tensor = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        return targets

    def _loss_sum(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the sum of the losses of a batch's targets, a scalar tensor."""
        inputs = {n: value for n, value in inputs.items() if n not in (ROWS_KEY, TOKENS_KEY)}
        if self._chunked_loss is None:
            return model_loss(model, inputs)
        return self._chunked_loss(model, inputs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        self._rows += [row if row >= 0 else ~row for row in inputs[ROWS_KEY]]
        self.tokens += inputs[TOKENS_KEY]
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(loss.item()):
            raise self._diverged("loss", loss.item(), inputs[ROWS_KEY])
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        # With float16 the first gradients overflow by design, and their step is skipped.
        checked = self.accelerator.scaler is None and norm is not None
        if checked and not math.isfinite(float(norm)):
            raise self._diverged("gradient norm", float(norm), self._rows)
        return norm

    def _diverged(self, name: str, value: float, rows: list[int]) -> TrainingDivergedError:
        """Return the error of a loss or a gradient that is not finite."""
        newest = self._checkpoints.newest()
        saved = f"the last checkpoint is {newest.path}" if newest else "there is no checkpoint yet"
        return TrainingDivergedError(
            f"{name} is {'NaN' if math.isnan(value) else value} at step "
            f"{self.state.global_step + 1}; {saved}\n"
            f"rows of this step: {self._describe_rows(rows)}",
            hint="check these rows; then try a lower --learning-rate, or --dtype float32",
        )

    # Time, evaluation and checkpoints

    def record_step_time(self) -> None:
        """Record the end of a step, for the speed."""
        self._seconds += time.perf_counter() - self._times[-1][0]
        self._times.append((time.perf_counter(), self.tokens))
        self._rows = []
        (start, before), (now, after) = self._times[0], self._times[-1]
        if now > start:
            self.tokens_per_s = (after - before) / (now - start) * self.args.world_size

    def restore_counters(self) -> None:
        """Continue the counters of a resumed run."""
        saved: Any = self.state.stateful_callbacks
        if (counters := saved.get(_COUNTERS_KEY)) is not None:
            self.tokens, self._seconds = counters["tokens"], counters["step_seconds"]
            self._began -= counters["seconds"]

    def _store_counters(self) -> None:
        saved: Any = self.state.stateful_callbacks
        saved[_COUNTERS_KEY] = {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "step_seconds": self._seconds,
        }

    @property
    def seconds(self) -> float:
        """Duration of the run, earlier commands that it resumes and evaluations included."""
        return time.perf_counter() - self._began

    @property
    def mean_tokens_per_s(self) -> float:
        """Over all steps, without the time between them (evaluations, checkpoints)."""
        return self.tokens / self._seconds * self.args.world_size if self._seconds else 0.0

    def restart_step_timer(self) -> None:
        """Leave the time since the last step out of the speed."""
        self._times.clear()
        self._times.append((time.perf_counter(), self.tokens))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss per target on the evaluation set, in nats."""
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in self.loaders.eval_loader():
                self._check_stop()
                inputs = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    loss = self._loss_sum(model, inputs)
                sums += torch.stack([loss.double(), self._count_targets(inputs)])
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums)
        metrics = {"eval_loss": float(sums[0] / sums[1])}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.restart_step_timer()
        return metrics

    def _check_stop(self) -> None:
        # With several processes none may leave while the others wait for it.
        if self.args.world_size == 1:
            self.stop.check()

    def best_eval(self) -> tuple[int, float] | None:
        """Return step and loss of the best evaluation so far, except the one at step 0."""
        history = [e for e in self.state.log_history if "eval_loss" in e]
        evals = [(int(e["step"]), e["eval_loss"]) for e in history if e["step"] > 0]
        return min(evals, key=lambda entry: entry[1], default=None)

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the last completed step now."""
        self._save_checkpoint(self.model_wrapped)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        try:
            self._save_atomically(model, trial)
        except Exception as error:
            if self.args.world_size > 1 or not is_disk_full(error):
                raise
            newest = self._checkpoints.newest()
            self._warn(
                f"the disk is full: step {self.state.global_step} is not saved, the last "
                f"checkpoint is {newest.path.name if newest else 'none'}; the training continues"
            )

    def _save_atomically(self, model: Any, trial: Any) -> None:
        best = self.best_eval()
        self._store_counters()
        output, owner = self.args.output_dir, self.args.should_save
        with self._checkpoints.staging(owner=owner) as staging:
            self.args.output_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
                if owner:
                    self._write_extra_files(staging / f"checkpoint-{self.state.global_step}")
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
    """Write an adapter, or the whole model after full fine-tuning.

    Args:
        state: the weights where they are gathered from several devices; `None` takes the model's.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        # Otherwise PEFT asks the hub whether the vocabulary has grown.
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder), state_dict=state)
