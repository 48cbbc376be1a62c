"""Direct preference optimisation (Rafailov et al. 2023) with TRL's loss in llmctl's Trainer.

The chosen reply becomes more likely than the rejected one, relative to a reference model. The
reference is the model with its adapter disabled, so no weights are held twice. TRL is an extra;
importing this module without it raises `MissingDependencyError`.
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
"""TRL's name of the adapter copy that would be its reference."""
_EMPTY_PAIR_LOSS = math.log(2)
"""Loss of a pair with equally likely replies, which a pair without targets always has."""


def check_dpo_settings(config: TrainConfig, adapter: str | None) -> None:
    """Check the settings that DPO does not support.

    Raises:
        ConfigError: one of them is set.
    """
    if adapter is not None:
        raise ConfigError(
            f"{adapter} is an adapter, and the reference of dpo must be a whole model",
            hint=f"`llmctl models merge {adapter} -o FOLDER`, then --model FOLDER",
        )
    if config.packing:
        raise ConfigError("dpo does not support packing", hint="--no-packing")
    if config.fsdp or config.deepspeed:
        raise ConfigError("dpo does not support FSDP or DeepSpeed")


class PreferenceCollator:
    """Collates pairs of samples to `input_ids` and `completion_mask`, both of shape (2 pairs, seq).

    The chosen replies come first, then the rejected ones. Rows are padded on the right.
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
    """TRL's trainer, set up only as far as its loss needs."""

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
        # TRL's reference is a copy of the adapter. A new adapter adds nothing, so the model without
        # it is the same reference and takes no memory.
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
    """Trains on pairs with the DPO loss; arguments as `SftTrainer`."""

    def __init__(
        self, model: Any, args: TrainingArguments, *, tokenizer: Any, **others: Any
    ) -> None:
        # TRL sets a padding token where there is none.
        self.tokenizer = deepcopy(tokenizer)
        super().__init__(model, args, **others)

    def _count_targets(self, inputs: dict[str, Any]) -> Tensor:
        return _has_targets(inputs["completion_mask"]).sum()

    def _loss_sum(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        has_targets = _has_targets(inputs["completion_mask"])
        pairs = {
            "input_ids": inputs["input_ids"],
            "completion_mask": inputs["completion_mask"],
            # Causal attention does not look at padding on the right; a mask would slow it down.
            "attention_mask": torch.ones_like(inputs["input_ids"]),
        }
        mean: Tensor = self._compute_loss(model, pairs, False)
        return mean * len(has_targets) - _EMPTY_PAIR_LOSS * (~has_targets).sum()


def _has_targets(completion_mask: Tensor) -> Tensor:
    """Return for each pair whether its chosen reply has targets: bool of shape (pairs,)."""
    return completion_mask.any(dim=1).chunk(2)[0]


def dpo_arguments(config: TrainConfig) -> Callable[..., TrainingArguments]:
    """Return a factory of TRL's arguments, in place of `TrainingArguments`."""

    def create(**settings: Any) -> TrainingArguments:
        with warnings.catch_warnings(action="ignore"):  # both names change in transformers 6
            arguments: TrainingArguments = _DPOConfig(
                beta=config.dpo_beta,
                max_length=None,  # rows are truncated when they are tokenized
                # Gradient checkpointing is enabled on the model itself, if at all.
                gradient_checkpointing=False,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                **settings,
            )
        return arguments

    return create
