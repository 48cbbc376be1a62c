"""Prediction of a training's peak memory, part by part, and of settings that fit.

It needs only the model's config. Weights, gradients and optimizer states follow from parameter
counts; activations are traced on tensors without memory (`trace_step`).
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

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
"""Work space: temporary tensors of a step, such as chunks of logits and gradients of activations.
Holes: fragmentation of the allocator. Process: Python and its libraries, on a CPU."""
_STATE: Final[Mapping[Optimizer, float]] = {
    "adamw": 8.0,
    "adamw_8bit": 2.03,
    "paged_adamw_8bit": 2.03,
}
"""Bytes of AdamW's two moments per trainable parameter; in 8 bits with a scale per 256 values
(Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization)."""
_LOSS_COPIES = 2
"""Chunks of logits that exist at once in float32: the logits and their softmax."""
_TRL_TOKENS, _TRL_WORDS = 4096, 32768
"""Size of a tile of logits in TRL's loss."""
_LIBRARIES = 96 * 2**20
"""Memory of Transformers, PEFT and their dependencies once imported and used. Measured."""
_MMAP_THRESHOLD = 32 * 2**20
"""glibc's malloc returns larger blocks to the system at once (mallopt(3), M_MMAP_THRESHOLD);
smaller blocks leave holes when they are freed."""
_HEAP_HOLES = 0.25
"""Fragmentation of malloc, as a share of a step's tensors. Measured, from 0.1 to 0.4."""
_CUDA_HOLES = 0.05
"""Fragmentation of PyTorch's caching allocator, as a share of the allocated bytes. An assumption,
not measured."""
_MAX_SUGGESTIONS = 3
_MIN_SUGGESTED_LENGTH = 256
"""Shorter rows, in tokens, are not suggested."""


@dataclass(frozen=True, slots=True)
class TrainMemoryEstimate:
    """Predicted peak memory of a training, in bytes."""

    parts: Mapping[MemoryPart, int]
    """In the order of `MemoryPart`, without empty parts."""
    reserve_bytes: int
    """Kept free for the driver and other programs; not part of the peak."""
    free_bytes: int
    """Available to this process, including what it already uses."""
    rows: int
    """Sequences in a micro-batch."""
    length: int
    """Tokens of the longest sequence."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.peak_bytes + self.reserve_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True)
class MemorySuggestion:
    """Settings that fit, and their prediction."""

    options: str
    """As on the command line."""
    plan: TrainMemoryEstimate


class TrainMemoryEstimator:
    """Predicts the peak memory of trainings of one model; caches the traces.

    Args:
        metadata: the model, and the device to train on.
        world_size: devices that train together, each with the whole model.
        free_bytes: free memory of the device; measured if not given.
    """

    def __init__(
        self,
        metadata: ModelMetadata,
        *,
        world_size: int = 1,
        free_bytes: int | None = None,
    ) -> None:
        self._metadata = metadata
        self._world_size = world_size
        self._device = TargetDevice.here(metadata.device, metadata.dtype)
        self._held = psutil.Process().memory_info().rss if metadata.device.type == "cpu" else 0
        self._free = self._device.free_bytes + self._held if free_bytes is None else free_bytes
        try:
            self._stored = tuple(model_entries(metadata.resolved.full_model.path).values())
        except (OSError, ValueError, KeyError, TypeError):  # GGUF, pickle
            self._stored = ()
        self._traces: dict[tuple[object, ...], TracedMemory] = {}
        self._trainable: dict[tuple[object, ...], int] = {}

    def predict(self, config: TrainConfig, *, length: int, supervised: int) -> TrainMemoryEstimate:
        """Predict the peak memory of a training.

        Args:
            config: with all settings resolved.
            length: tokens of the longest row, or of the longer reply of the longest pair.
            supervised: targets in that row, or in both replies.
        """
        # Both replies of a pair are in one batch.
        sides = 2 if config.method == "dpo" else 1
        shape, rows = self._metadata.shape, sides * (config.micro_batch_size or 1)
        trainable = self._count(config)
        accumulates = sides * config.batch_size > rows * self._world_size
        step = self._trace(config, rows, length, accumulates)
        targets = rows // sides * supervised
        if config.method == "dpo":
            loss, kept = self._pair_loss(rows * length, targets)
        else:
            loss, kept = self._loss(config, targets)
        dynamic = max(step.saved + loss, step.peak + kept)
        if accumulates:
            dynamic += 4 * trainable
        gradients = min(4 * trainable, dynamic)
        activations = min(step.saved, dynamic - gradients)
        weights = shape.weight_bytes(weights_dtype(config).itemsize, config.weights_quant)
        parts: dict[MemoryPart, int] = {
            "weights": weights - 4 * shape.adapter_parameters,
            "adapter": 0 if config.method == "full" else 4 * trainable,
            "gradients": gradients,
            "optimizer": int(_STATE[config.optimizer] * trainable),
            "activations": activations,
            "work space": dynamic - gradients - activations,
        }
        if self._world_size > 1:  # DDP copies gradients into buckets of its own
            parts["gradients"] += 4 * trainable
        return self._plan(config, parts, length)

    def _plan(
        self, config: TrainConfig, parts: dict[MemoryPart, int], length: int
    ) -> TrainMemoryEstimate:
        if self._metadata.device.type == "cpu":
            dynamic = parts["activations"] + parts["work space"]
            parts["holes"] = self._load_holes(config) + int(_HEAP_HOLES * dynamic)
            parts["process"] = self._held + _LIBRARIES
        else:
            parts["holes"] = int(_CUDA_HOLES * sum(parts.values()))
        return TrainMemoryEstimate(
            parts={part: size for part, size in parts.items() if size},
            reserve_bytes=self._device.reserve_bytes,
            free_bytes=self._free,
            rows=config.micro_batch_size or 1,
            length=length,
        )

    def _load_holes(self, config: TrainConfig) -> int:
        """Return the fragmentation that remains when weights are converted while loading.

        Weights that keep their stored type are mapped from the file and leave none.
        """
        entries = self._stored
        dtype = weights_dtype(config)
        if config.weights_quant == "none" and all(DTYPES.get(e.dtype) == dtype for e in entries):
            return 0
        return sum(entry.bytes for entry in entries if entry.bytes < _MMAP_THRESHOLD)

    def _loss(self, config: TrainConfig, tokens: int) -> tuple[int, int]:
        """Return the bytes of the chunked loss: its peak, and what the backward pass keeps."""
        shape = self._metadata.shape
        itemsize = 4 if config.dtype == "float32" else 2
        chunk = min(tokens, max(1, LOGITS_PER_CHUNK // shape.vocab))
        kept = tokens * shape.hidden * itemsize
        work = chunk * shape.vocab * 4 * _LOSS_COPIES + tokens * shape.hidden * itemsize
        matrix = shape.vocab * shape.hidden
        if config.method == "full":
            kept += matrix * 4
        if itemsize == 2 and self._metadata.device.type == "cpu":
            work += matrix * itemsize  # oneDNN reorders the head's weight for every product
        return work + kept, kept

    def _pair_loss(self, tokens: int, targets: int) -> tuple[int, int]:
        """Return the bytes of TRL's DPO loss: its peak, and what the backward pass keeps.

        It computes a tile of the logits at a time; without Triton for all tokens, and with eight
        copies of the tile (trl 1.16, `kernels/chunked_logprob.py`).
        """
        shape, triton = self._metadata.shape, self._metadata.device.type == "cuda"
        scored = targets if triton else tokens
        tile = min(scored, _TRL_TOKENS) * min(shape.vocab, _TRL_WORDS)
        kept = scored * shape.hidden * 4
        return kept + tile * (2 if triton else 8 * 4), kept

    def _count(self, config: TrainConfig) -> int:
        key = (config.method, config.rank, config.target_modules)
        if key not in self._trainable:
            self._trainable[key] = count_trainable(config, self._metadata)
        return self._trainable[key]

    def _trace(
        self, config: TrainConfig, rows: int, length: int, accumulates: bool
    ) -> TracedMemory:
        key = (
            *(config.method, config.rank, config.target_modules, config.dropout, config.dtype),
            *(config.weights_quant, config.gradient_checkpointing, config.attention),
            *(rows, length, accumulates),
        )
        if key not in self._traces:
            self._traces[key] = trace_step(
                config,
                self._metadata,
                rows=rows,
                length=length,
                dtype=weights_dtype(config),
                accumulates=accumulates,
            )
        return self._traces[key]

    def suggest(
        self, config: TrainConfig, *, length: int, supervised: int
    ) -> tuple[MemorySuggestion, ...]:
        """Return settings that fit where these do not, the smallest change first.

        They keep the batch size, so that only the speed changes. Suggestions that change the
        results, 4 bits and shorter rows, come last.
        """
        suggestions = []
        for options, other, longest in self._candidates(config, length, supervised):
            share = min(1.0, longest / length)
            plan = self.predict(other, length=longest, supervised=int(supervised * share))
            if plan.fits:
                suggestions.append(MemorySuggestion(options, plan))
            if len(suggestions) == _MAX_SUGGESTIONS:
                break
        return tuple(suggestions)

    def _candidates(
        self, config: TrainConfig, length: int, supervised: int
    ) -> Iterator[tuple[str, TrainConfig, int]]:
        """Yield options, the settings with them, and the length of the longest row."""

        def fits(micro_batch_size: int) -> bool:
            smaller_batch = replace(config, micro_batch_size=micro_batch_size)
            return self.predict(smaller_batch, length=length, supervised=supervised).fits

        rows_per_device = config.batch_size // self._world_size
        rows = config.micro_batch_size or 1
        smaller = [n for n in range(rows - 1, 0, -1) if rows_per_device % n == 0]
        # Memory grows with the micro-batch: a binary search skips the sizes that do not fit.
        for count in smaller[bisect_left(smaller, True, key=fits) :]:
            yield f"--micro-batch-size {count}", replace(config, micro_batch_size=count), length
        options: list[str] = []
        changes: list[tuple[bool, str, dict[str, Any]]] = [
            (
                not config.gradient_checkpointing,
                "--gradient-checkpointing",
                {"gradient_checkpointing": True},
            ),
            (bool(smaller), "--micro-batch-size 1", {"micro_batch_size": 1}),
            (
                config.optimizer == "adamw" and config.method == "full",
                "--optimizer adamw_8bit",
                {"optimizer": "adamw_8bit"},
            ),
            (config.method == "full", "--method lora", {"method": "lora"}),
            (
                config.weights_quant != "4bit" and self._metadata.shape.quantisable,
                "--quant 4bit",
                {"quant": "4bit"},
            ),
        ]
        for applies, option, values in changes:
            if applies:
                config, options = replace(config, **values), [*options, option]
                yield " ".join(options), config, length
        while length > _MIN_SUGGESTED_LENGTH:
            length = max(_MIN_SUGGESTED_LENGTH, length // 2)
            yield " ".join([*options, f"--max-length {length}"]), config, length

    def out_of_memory_error(
        self, plan: TrainMemoryEstimate, suggestions: tuple[MemorySuggestion, ...]
    ) -> OutOfMemoryError:
        """Return the error with the parts of the prediction, and the settings that would fit."""
        parts = ", ".join(f"{part} {format_gib(size)}" for part, size in plan.parts.items())
        options = " or ".join(
            f"{one.options} ({format_gib(one.plan.peak_bytes)})" for one in suggestions
        )
        return OutOfMemoryError(
            f"the training needs {format_gib(plan.peak_bytes)} and a reserve of "
            f"{format_gib(plan.reserve_bytes)}, but {self._metadata.device} has "
            f"{format_gib(plan.free_bytes)}: {parts}, with a micro-batch of {plan.rows} rows of up "
            f"to {plan.length:,} tokens",
            hint=f"{options} would fit" if options else "no setting fits: choose a smaller model",
        )
