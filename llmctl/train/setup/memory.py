"""How much memory will a training take, part by part, and what would make it fit?

From the model's config alone. Weights, gradients and the optimizer's state follow from counts;
what a step holds besides is replayed on tensors without memory (`replay`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import psutil

from llmctl.config import TrainConfig
from llmctl.config.finetune import Optimizer
from llmctl.engine.loading.safetensors_writer import DTYPES
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.engine.memory.estimate import format_gib
from llmctl.engine.memory.request import TargetDevice
from llmctl.engine.models.weight_files import model_entries
from llmctl.errors import OutOfMemoryError
from llmctl.train.kernels.cross_entropy import LOGITS_PER_CHUNK
from llmctl.train.setup.memory_trace import TracedMemory, trace_step
from llmctl.train.setup.trainable_parameters import count_trainable, weights_dtype

MemoryPart = Literal[
    "weights", "adapter", "gradients", "optimizer", "activations", "work space", "holes", "process"
]
"""Work space is what a step holds and lets go of: chunks of logits, gradients of activations. Holes
are what the allocator keeps between the pieces it was asked for. Process: Python and its libraries,
on a CPU."""
_STATE: Final[Mapping[Optimizer, float]] = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "paged_adamw_8bit": 2.03,
}
"""Bytes of AdamW's two means per parameter that learns; in 8 bits with a scale per 256 of them
(Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization)."""
_LOSS_COPIES = 2
"""Chunks of logits that exist at once in float32: the logits and their softmax."""
_TRL_TOKENS, _TRL_WORDS = 4096, 32768
"""A tile of logits in TRL's loss."""
_LIBRARIES = 96 * 2**20
"""What Trainer, PEFT and their like take when they are imported and first used. Measured."""
_HEAP_PIECE = 32 * 2**20
"""glibc's malloc gives larger pieces back to the system at once (mallopt(3), M_MMAP_THRESHOLD);
smaller ones that are let go leave holes."""
_HEAP_HOLES = 0.25
"""Share of what a step holds that malloc takes besides. Measured, from a tenth to two fifths."""
_CUDA_HOLES = 0.05
"""Share that the caching allocator takes beyond what is asked of it: blocks are rounded up, and
holes stay between them. Not measured by us."""
_SHOWN = 3
"""Suggestions at most."""
_SHORTEST = 256
"""Tokens: rows are not suggested to be shorter."""


@dataclass(frozen=True, slots=True)
class TrainMemoryEstimate:
    """What a training is predicted to take at most, in bytes."""

    parts: Mapping[MemoryPart, int]
    """Largest things first in the order of `ResponseDelta`; a CPU's has the process itself too."""
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
class MemorySuggestion:
    """Other settings, and what they would take."""

    options: str
    """As a person writes them."""
    plan: TrainMemoryEstimate


class TrainMemoryEstimator:
    """Predicts for one model; what was replayed once is remembered.

    Args:
        outline: the model, and the device it would learn on.
        world: devices that learn together, each with the whole model.
        lean: the loss is made by `head.SupervisedHead`.
        free_bytes: what the device has; measured if not given.
    """

    def __init__(
        self,
        outline: ModelMetadata,
        *,
        world: int = 1,
        lean: bool = True,
        free_bytes: int | None = None,
    ) -> None:
        self._outline = outline
        self._world = world
        self._lean = lean
        self._machine = TargetDevice.here(outline.device, outline.dtype)
        self._held = psutil.Process().memory_info().rss if outline.device.type == "cpu" else 0
        given = self._machine.free_bytes + self._held if free_bytes is None else free_bytes
        self._free = given
        try:
            self._stored = tuple(model_entries(outline.resolved.full_model.path).values())
        except (OSError, ValueError, KeyError, TypeError):  # GGUF, pickle
            self._stored = ()
        self._replayed: dict[tuple[object, ...], TracedMemory] = {}
        self._trainable: dict[tuple[object, ...], int] = {}

    def predict(self, config: TrainConfig, *, length: int, supervised: int) -> TrainMemoryEstimate:
        """Predict the peak of a training.

        Args:
            config: resolved: no setting is left open.
            length: tokens of the longest row, or of the longer answer of the longest pair.
            supervised: tokens of it, or of both answers, that the loss falls on.
        """
        # Both answers of a pair are read at once.
        sides = 2 if config.method == "dpo" else 1
        shape, rows = self._outline.shape, sides * (config.micro_batch_size or 1)
        trainable = self._count(config)
        accumulates = sides * config.batch_size > rows * self._world
        step = self._replay(config, rows, length, accumulates)
        learnt = rows // sides * supervised
        if config.method == "dpo":
            loss, kept = self._pair_loss(rows * length, learnt)
        else:
            loss, kept = self._loss(config, learnt) if self._lean else (0, 0)
        moving = max(step.saved + loss, step.peak + kept)
        if accumulates:
            moving += 4 * trainable
        gradients = min(4 * trainable, moving)
        activations = min(step.saved, moving - gradients)
        weights = shape.weight_bytes(weights_dtype(config), config.weights_quant)
        parts: dict[MemoryPart, int] = {
            "weights": weights - 4 * shape.adapter_parameters,
            "adapter": 0 if config.method == "full" else 4 * trainable,
            "gradients": gradients,
            "optimizer": int(_STATE[config.optimizer] * trainable),
            "activations": activations,
            "work space": moving - gradients - activations,
        }
        if self._world > 1:  # DDP sends them in buckets of its own
            parts["gradients"] += 4 * trainable
        return self._plan(config, parts, length)

    def _plan(
        self, config: TrainConfig, parts: dict[MemoryPart, int], length: int
    ) -> TrainMemoryEstimate:
        if self._outline.device.type == "cpu":
            moving = parts["activations"] + parts["work space"]
            parts["holes"] = self._load_holes(config) + int(_HEAP_HOLES * moving)
            parts["process"] = self._held + _LIBRARIES
        else:
            parts["holes"] = int(_CUDA_HOLES * sum(parts.values()))
        return TrainMemoryEstimate(
            parts={part: size for part, size in parts.items() if size},
            reserve_bytes=self._machine.reserve_bytes,
            free_bytes=self._free,
            rows=config.micro_batch_size or 1,
            length=length,
        )

    def _load_holes(self, config: TrainConfig) -> int:
        """Return what loading leaves of weights that are converted after they were read.

        What is used as it is stored stays a map of the file.
        """
        entries = self._stored
        wanted = weights_dtype(config)
        if config.weights_quant == "none" and all(DTYPES.get(e.dtype) == wanted for e in entries):
            return 0
        return sum(entry.bytes for entry in entries if entry.bytes < _HEAP_PIECE)

    def _loss(self, config: TrainConfig, tokens: int) -> tuple[int, int]:
        """Return what the lean head holds at once, and what stays of it for the backward pass."""
        shape = self._outline.shape
        itemsize = 4 if config.dtype == "float32" else 2
        chunk = min(tokens, max(1, LOGITS_PER_CHUNK // shape.vocab))
        kept = tokens * shape.hidden * itemsize
        work = chunk * shape.vocab * 4 * _LOSS_COPIES + tokens * shape.hidden * itemsize
        matrix = shape.vocab * shape.hidden
        if config.method == "full":
            kept += matrix * 4
        if itemsize == 2 and self._outline.device.type == "cpu":
            work += matrix * itemsize  # oneDNN lays the head's weight out anew for every product
        return work + kept, kept

    def _pair_loss(self, tokens: int, learnt: int) -> tuple[int, int]:
        """Return what TRL's loss holds at once, and what stays of it for the backward pass.

        It works on a tile of the logits at a time; without Triton on all tokens, and with eight
        copies of the tile (trl 1.16, `kernels/chunked_logprob.py`).
        """
        shape, triton = self._outline.shape, self._outline.device.type == "cuda"
        scored = learnt if triton else tokens
        tile = min(scored, _TRL_TOKENS) * min(shape.vocab, _TRL_WORDS)
        kept = scored * shape.hidden * 4
        return kept + tile * (2 if triton else 8 * 4), kept

    def _count(self, config: TrainConfig) -> int:
        key = (config.method, config.rank, config.target_modules)
        if key not in self._trainable:
            self._trainable[key] = count_trainable(config, self._outline)
        return self._trainable[key]

    def _replay(
        self, config: TrainConfig, rows: int, length: int, accumulates: bool
    ) -> TracedMemory:
        key = (
            *(config.method, config.rank, config.target_modules, config.dropout, config.dtype),
            *(config.weights_quant, config.gradient_checkpointing, config.attention),
            *(rows, length, accumulates),
        )
        if key not in self._replayed:
            self._replayed[key] = trace_step(
                config,
                self._outline,
                rows=rows,
                length=length,
                dtype=weights_dtype(config),
                accumulates=accumulates,
                whole_logits=not self._lean,
            )
        return self._replayed[key]

    def suggest(
        self, config: TrainConfig, *, length: int, supervised: int
    ) -> tuple[MemorySuggestion, ...]:
        """Name settings that fit where these do not, the least change first.

        Each keeps the batch, so the training stays the same but for speed; with 4 bits, or with
        shorter rows, it does not, and these come last.
        """
        found = []
        for options, other, cut in self._ways(config, length):
            share = min(1.0, cut / length)
            plan = self.predict(other, length=cut, supervised=int(supervised * share))
            if plan.fits:
                found.append(MemorySuggestion(options, plan))
            if len(found) == _SHOWN:
                break
        return tuple(found)

    def _ways(self, config: TrainConfig, length: int) -> Iterator[tuple[str, TrainConfig, int]]:
        """Yield options, the settings with them, and the length of the longest row."""
        share = config.batch_size // self._world
        rows = config.micro_batch_size or 1
        smaller = [n for n in range(rows - 1, 0, -1) if share % n == 0]
        for count in smaller:
            yield f"--micro-batch-size {count}", replace(config, micro_batch_size=count), length
        lean, said = config, []
        if not config.gradient_checkpointing:
            lean, said = replace(config, gradient_checkpointing=True), ["--gradient-checkpointing"]
            yield said[0], lean, length
        if smaller:
            lean, said = replace(lean, micro_batch_size=1), [*said, "--micro-batch-size 1"]
            yield " ".join(said), lean, length
        if config.optimizer == "adamw" and config.method == "full":
            lean, said = replace(lean, optimizer="adamw_8bit"), [*said, "--optimizer adamw_8bit"]
            yield " ".join(said), lean, length
        if config.method == "full":
            lean, said = replace(lean, method="lora"), [*said, "--method lora"]
            yield " ".join(said), lean, length
        if config.weights_quant != "4bit" and self._outline.shape.quantisable:
            lean = replace(lean, quant="4bit")
            said = [*said, "--quant 4bit"]
            yield " ".join(said), lean, length
        while length > _SHORTEST:
            length = max(_SHORTEST, length // 2)
            yield " ".join([*said, f"--max-length {length}"]), lean, length

    def refuse(
        self, plan: TrainMemoryEstimate, suggestions: tuple[MemorySuggestion, ...]
    ) -> OutOfMemoryError:
        """Return the error that says what is missing, and what would fit."""
        parts = ", ".join(f"{part} {format_gib(size)}" for part, size in plan.parts.items())
        device = self._outline.device
        ways = " or ".join(
            f"{way.options} ({format_gib(way.plan.peak_bytes)})" for way in suggestions
        )
        return OutOfMemoryError(
            f"the training needs {format_gib(plan.peak_bytes)} and a reserve of "
            f"{format_gib(plan.reserve_bytes)}, and {device} has "
            f"{format_gib(plan.free_bytes)}: {parts}, with "
            f"{plan.rows} rows of up to {plan.length:,} tokens at once",
            hint=f"{ways} would fit" if ways else "nothing makes it fit: choose a smaller model",
        )
