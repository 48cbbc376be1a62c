"""The memory request of a model on a device, and the longest context that fits."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Self

import torch

from llmctl.engine.memory.estimate import ModelShape, free_bytes
from llmctl.engine.memory.hardware import choose_device, choose_dtype, stores_float16
from llmctl.types import DEFAULT_MAX_ROWS, DType, MemoryLimits, Quant

MIN_CONTEXT = 2048
"""Tokens. A model is not started with a shorter context, unless it is requested."""
QUANTS: tuple[Quant, ...] = ("none", "8bit", "4bit")
"""In order of weight size, largest first."""
CONTEXT_STEP = 256
"""A context length that memory limits is a multiple of it."""
_CPU_KV_SHARE = 0.5
"""Largest share of a CPU's free memory for the KV cache: other programs need memory too."""
_CUDA_RESERVE = 600 * 2**20
"""The CUDA context with the kernels loaded on first use, the cuBLAS workspace, and fragmentation
of the caching allocator."""
_RESERVE_SHARE = 0.05
"""Of the free memory on other devices, for the allocations of other programs."""


@dataclass(frozen=True, slots=True)
class TargetDevice:
    """The device that a model would run on."""

    device: str
    dtype: torch.dtype
    """To compute in."""
    free_bytes: int
    float16_weights: bool = False
    """Whether weights take two bytes, whatever `dtype` is."""

    @classmethod
    def here(
        cls, device: torch.device, dtype: torch.dtype, *, float16_weights: bool = False
    ) -> Self:
        """Return a device of this machine with its memory that is free now."""
        return cls(str(device), dtype, free_bytes(device), float16_weights)

    @classmethod
    def hypothetical(cls, device: str, dtype: DType, free: int) -> Self:
        """Return a device with `free` bytes; `auto` is a CUDA device with native bfloat16."""
        if device.partition(":")[0] not in ("auto", "cuda"):
            chosen = choose_device(device)
            native = choose_dtype(dtype, chosen)
            return cls(str(chosen), native, free, stores_float16(dtype, chosen))
        native = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        return cls("cuda" if device == "auto" else device, native, free)

    @property
    def kind(self) -> str:
        """The device type: `cpu`, `cuda` or `mps`."""
        return self.device.partition(":")[0]

    @property
    def weight_itemsize(self) -> int:
        """Bytes of a weight that is not quantised."""
        return 2 if self.float16_weights else self.dtype.itemsize

    @property
    def reserve_bytes(self) -> int:
        """Memory that no plan uses."""
        if self.kind == "cuda":
            return _CUDA_RESERVE
        return int(self.free_bytes * _RESERVE_SHARE)


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """A model on a device, with a quantisation and limits. All sizes in bytes."""

    shape: ModelShape
    target: TargetDevice
    quant: Quant
    limits: MemoryLimits

    @property
    def rows(self) -> int:
        """Number of replies generated at the same time."""
        if not self.shape.batched:
            return 1
        return DEFAULT_MAX_ROWS if self.limits.max_rows is None else self.limits.max_rows

    @property
    def requested_context(self) -> int:
        """The requested context length, at most the model's."""
        requested = self.limits.context_length
        model_length = self.shape.context_length
        return model_length if requested is None else min(requested, model_length)

    @property
    def min_context(self) -> int:
        """The shortest acceptable context length."""
        if self.limits.context_length is not None:
            return self.requested_context
        return min(self.requested_context, MIN_CONTEXT)

    @property
    def weight_bytes(self) -> int:
        target = self.target
        int4 = target.kind == "cpu"
        copies = 2 * self.shape.tied_parameters if target.float16_weights else 0
        return copies + self.shape.weight_bytes(target.weight_itemsize, self.quant, int4=int4)

    @property
    def kv_limit(self) -> int:
        """Upper limit of the KV cache, however much memory is free."""
        if self.limits.kv_bytes is not None:
            return self.limits.kv_bytes
        share = _CPU_KV_SHARE if self.target.kind == "cpu" else 1
        return int(self.target.free_bytes * share)

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of one row of `tokens`."""
        return self.shape.kv_bytes(tokens, self.target.dtype.itemsize, self.limits.kv_quant)

    def row_bytes(self, tokens: int) -> int:
        """Keys, values and states of one row of `tokens`."""
        return self.kv_bytes(tokens) + self.state_bytes

    @property
    def state_bytes(self) -> int:
        """States of one row, with saved copies."""
        return self.shape.state_bytes(self.target.dtype.itemsize)

    def activation_bytes(self, context: int) -> int:
        itemsize = self.target.dtype.itemsize
        return self.shape.activation_bytes(context, self.rows, itemsize, self.quant)

    def available_kv_bytes(self, context: int) -> int:
        """Memory left for the KV cache with this context length; negative if there is none."""
        target = self.target
        fixed = self.weight_bytes + target.reserve_bytes + self.activation_bytes(context)
        return min(target.free_bytes - fixed, self.kv_limit)

    @property
    def max_context(self) -> int:
        """The longest context length that fits for one row, in whole steps; 0 if none fits."""
        # All parts grow with the context, so every length up to the longest fits.
        longest = self.requested_context
        fitting = bisect_left(
            range(1, longest + 1),
            1,
            key=lambda c: self.row_bytes(c) > self.available_kv_bytes(c),
        )
        return fitting if fitting == longest else fitting // CONTEXT_STEP * CONTEXT_STEP

    @property
    def planned_context(self) -> int:
        """The context length to run with; 0 if the model does not fit."""
        return self.max_context if self.max_context >= self.min_context else 0
