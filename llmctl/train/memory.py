"""How much memory will a training take, part by part, and what would make it fit?

From the model's config alone. Weights, gradients and the optimizer's state follow from counts;
what a step holds besides is replayed on tensors without memory (`replay`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import psutil

from llmctl.config import TrainConfig
from llmctl.config.finetune import Optimizer
from llmctl.engine.case import Machine
from llmctl.engine.trainable import ModelOutline
from llmctl.train.head import CHUNK_LOGITS
from llmctl.train.method import count_trainable
from llmctl.train.replay import Replay, replay
from llmctl.train.run import weights_dtype

Part = Literal[
    "weights", "adapter", "gradients", "optimizer", "activations", "work space", "process"
]
_STATE: Final[Mapping[Optimizer, float]] = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "paged_adamw_8bit": 2.03,
}
"""Bytes of AdamW's two means per parameter that learns; in 8 bits with a scale per 256 of them
(Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization)."""
_LOSS_COPIES = 2
"""Chunks of logits that exist at once in float32: the logits and their softmax."""
_CPU_LIBRARIES = 0
_CPU_HOLES = 1.0
_CUDA_HOLES = 1.05
"""What the caching allocator takes for what is asked of it: blocks are rounded up, and holes stay
between them. Not measured by us."""
_SHORTEST = 256
"""Tokens: rows are not suggested to be shorter."""


@dataclass(frozen=True, slots=True)
class TrainMemoryPlan:
    """What a training is predicted to take at most, in bytes."""

    parts: Mapping[Part, int]
    """Largest things first in the order of `Part`; a CPU's has the process itself too."""
    reserve_bytes: int
    """Left to the driver and to other programs; not counted in the peak."""
    free_bytes: int
    """Free for this process, what it holds already among it."""
    rows: int
    """Sequences in a micro-batch."""
    length: int
    """Tokens of the longest one."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.peak_bytes + self.reserve_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Other settings, and what they would take."""

    options: str
    """As a person writes them."""
    plan: TrainMemoryPlan


class TrainMemory:
    """Predicts for one model; what was replayed once is remembered.

    Args:
        outline: the model, and the device it would learn on.
        world: devices that learn together, each with the whole model.
        lean: the loss is made by `head.SupervisedHead`.
        free_bytes: what the device has; measured if not given.
    """

    def __init__(
        self,
        outline: ModelOutline,
        *,
        world: int = 1,
        lean: bool = True,
        free_bytes: int | None = None,
    ) -> None:
        self._outline = outline
        self._world = world
        self._lean = lean
        self._machine = Machine.here(outline.device, outline.dtype)
        self._held = psutil.Process().memory_info().rss if outline.device.type == "cpu" else 0
        given = self._machine.free_bytes + self._held if free_bytes is None else free_bytes
        self._free = given
        self._replayed: dict[tuple[object, ...], Replay] = {}
        self._trainable: dict[tuple[object, ...], int] = {}

    def predict(self, config: TrainConfig, *, length: int, supervised: int) -> TrainMemoryPlan:
        """Predict the peak of a training.

        Args:
            config: resolved: no setting is left open.
            length: tokens of the longest row.
            supervised: tokens of it that the loss falls on.
        """
        shape, rows = self._outline.shape, config.micro_batch_size or 1
        trainable = self._count(config)
        accumulates = config.batch_size > rows * self._world
        step = self._replay(config, rows, length, accumulates)
        loss, kept = self._loss(config, rows * supervised) if self._lean else (0, 0)
        moving = max(step.saved + loss, step.peak + kept)
        if accumulates:
            moving += 4 * trainable
        gradients = min(4 * trainable, moving)
        activations = min(step.saved, moving - gradients)
        weights = shape.weight_bytes(weights_dtype(config), config.weights_quant)
        parts: dict[Part, int] = {
            "weights": weights - 4 * shape.adapter_parameters,
            "adapter": 0 if config.method == "full" else 4 * trainable,
            "gradients": gradients,
            "optimizer": int(_STATE[config.optimizer] * trainable),
            "activations": activations,
            "work space": moving - gradients - activations,
        }
        if self._world > 1:  # DDP sends them in buckets of its own
            parts["gradients"] += 4 * trainable
        return self._plan(parts, rows, length)

    def _plan(self, parts: dict[Part, int], rows: int, length: int) -> TrainMemoryPlan:
        cpu = self._outline.device.type == "cpu"
        holes = _CPU_HOLES if cpu else _CUDA_HOLES
        parts = {part: int(size * holes) for part, size in parts.items()}
        if cpu:
            parts["process"] = self._held + _CPU_LIBRARIES
        return TrainMemoryPlan(
            parts={part: size for part, size in parts.items() if size},
            reserve_bytes=self._machine.reserve_bytes,
            free_bytes=self._free,
            rows=rows,
            length=length,
        )

    def _loss(self, config: TrainConfig, tokens: int) -> tuple[int, int]:
        """Return what the lean head holds at once, and what stays of it for the backward pass."""
        shape = self._outline.shape
        itemsize = 4 if config.dtype == "float32" else 2
        chunk = min(tokens, max(1, CHUNK_LOGITS // shape.vocab))
        kept = tokens * shape.hidden * itemsize
        work = chunk * shape.vocab * 4 * _LOSS_COPIES + tokens * shape.hidden * itemsize
        if config.method == "full":
            kept += shape.vocab * shape.hidden * 4
        return work + kept, kept

    def _count(self, config: TrainConfig) -> int:
        key = (config.method, config.rank, config.target_modules)
        if key not in self._trainable:
            self._trainable[key] = count_trainable(config, self._outline)
        return self._trainable[key]

    def _replay(self, config: TrainConfig, rows: int, length: int, accumulates: bool) -> Replay:
        key = (
            *(config.method, config.rank, config.target_modules, config.dropout, config.dtype),
            *(config.weights_quant, config.gradient_checkpointing, config.attention),
            *(rows, length, accumulates),
        )
        if key not in self._replayed:
            self._replayed[key] = replay(
                config,
                self._outline,
                rows=rows,
                length=length,
                dtype=weights_dtype(config),
                accumulates=accumulates,
                whole_logits=not self._lean,
            )
        return self._replayed[key]
