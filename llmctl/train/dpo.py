"""How does a model learn from pairs, a better answer and a worse one? TRL's loss in our own loop.

Direct preference optimisation (Rafailov et al. 2023): the better answer is to become likelier than
the worse one, measured from where the model began. That is the model with its adapter put aside,
so nothing is held twice. TRL is an extra; whoever imports this module needs it.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments

from llmctl.config import TrainConfig
from llmctl.data.tokenized.storage import TokenSequence
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.train.trainer import SftTrainer

try:
    import trl
except ImportError as error:
    raise MissingDependencyError("--method dpo", "trl", extra="dpo") from error

_DPOTrainer: Any = trl.DPOTrainer  # type: ignore[attr-defined]
_DPOConfig: Any = trl.DPOConfig  # type: ignore[attr-defined]

_REFERENCE = "ref"
"""What TRL calls the copy of an adapter that it would measure from."""
_UNDECIDED = math.log(2)
"""Loss of a pair whose sides are equally likely, as those without anything to learn are."""


def check_dpo_settings(config: TrainConfig, adapter: str | None) -> None:
    """Refuse what cannot be learnt from pairs.

    Raises:
        ConfigError: with the way that can.
    """
    if adapter is not None:
        raise ConfigError(
            f"{adapter} is an adapter, and dpo measures from where a whole model began",
            hint=f"`llmctl models merge {adapter} -o FOLDER`, then --model FOLDER",
        )
    if config.packing:
        raise ConfigError("packing puts rows together, and dpo keeps pairs apart")
    if config.fsdp or config.deepspeed:
        raise ConfigError("dpo keeps the whole model on each device, without FSDP or DeepSpeed")


class PreferenceCollator:
    """Pairs of samples -> `input_ids` and `completion_mask`, both of shape (2 pairs, seq).

    The better answers come first, the worse ones after them. A row is padded on the right.
    """

    def __init__(self, *, pad_id: int, multiple_of: int = 1) -> None:
        self._pad_id = pad_id
        self._multiple_of = multiple_of

    def __call__(self, pairs: Sequence[tuple[TokenSequence, TokenSequence]]) -> dict[str, Any]:
        rows = [pair[side] for side in (0, 1) for pair in pairs]
        longest = max(len(row.ids) for row in rows)
        shape = (len(rows), -(-longest // self._multiple_of) * self._multiple_of)
        ids = np.full(shape, self._pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            mask[number, : len(row.ids)] = row.loss_mask
        return {"input_ids": torch.from_numpy(ids), "completion_mask": torch.from_numpy(mask)}


class _Preference(_DPOTrainer):  # type: ignore[misc]
    """TRL's trainer, told no more than its loss needs: the loop around it is not its own."""

    tokenizer: Any

    def __init__(self, model: Any, args: Any, callbacks: Any) -> None:
        from datasets import Dataset

        super().__init__(
            model=model,
            args=args,
            callbacks=callbacks,
            processing_class=self.tokenizer,
            data_collator=lambda rows: rows,
            train_dataset=Dataset.from_dict({"prompt": [""]}),
        )
        # TRL measures from a copy of the adapter as it is; a new one adds nothing, so the model
        # without it is the same and takes no memory.
        self.model.delete_adapter(_REFERENCE)
        for parameter in self.model.parameters():
            if parameter.requires_grad:  # on quantised weights TRL rounds adapters to bfloat16
                parameter.data = parameter.data.float()

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: Any, **__: Any) -> None:
        pass


class DpoTrainer(SftTrainer, _Preference):
    """Teaches a model which of two answers is the better one. Arguments as `SftTrainer`."""

    def __init__(
        self, model: Any, args: TrainingArguments, *, tokenizer: Any, **others: Any
    ) -> None:
        # TRL sets a padding token where there is none.
        self.tokenizer = deepcopy(tokenizer)
        super().__init__(model, args, **others)

    def _items(self, inputs: dict[str, Any]) -> Tensor:
        return _decided(inputs["completion_mask"]).sum()

    def _loss_sum(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        decided = _decided(inputs["completion_mask"])
        pairs = {
            "input_ids": inputs["input_ids"],
            "completion_mask": inputs["completion_mask"],
            # Padding is on the right, where no causal model looks; a mask would slow attention.
            "attention_mask": torch.ones_like(inputs["input_ids"]),
        }
        mean: Tensor = self._compute_loss(model, pairs, False)
        return mean * len(decided) - _UNDECIDED * (~decided).sum()


def _decided(completion_mask: Tensor) -> Tensor:
    """Return for each pair whether there is something to learn: shape (pairs,)."""
    return completion_mask.any(dim=1).chunk(2)[0]


def dpo_arguments(config: TrainConfig) -> Callable[..., TrainingArguments]:
    """Return what makes arguments of settings, in place of `TrainingArguments`."""

    def make(**settings: Any) -> TrainingArguments:
        with warnings.catch_warnings(action="ignore"):  # both names change in transformers 6
            made: TrainingArguments = _DPOConfig(
                beta=config.dpo_beta,
                max_length=None,  # rows were shortened when they were read
                # Whether activations are computed again is settled on the model, and in this way.
                gradient_checkpointing=False,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                **settings,
            )
        return made

    return make
