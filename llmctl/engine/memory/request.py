"""What would a model need on a machine, as somebody wants it, and how long a context fits?"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Self

import torch

from llmctl.engine.memory.estimate import ModelShape, free_bytes
from llmctl.engine.memory.hardware import choose_device, choose_dtype
from llmctl.types import DEFAULT_MAX_ROWS, DType, MemoryLimits, Quant

MIN_CONTEXT = 2048
"""Tokens of context under which a model that was made for more is not worth starting."""
QUANTS: tuple[Quant, ...] = ("none", "8bit", "4bit")
"""Largest weights first."""
CONTEXT_STEP = 256
"""A context that memory bounds is a multiple of it."""
_CPU_SHARE = 0.5
"""Of a CPU's free memory the KV cache takes at most so much: the machine is not ours alone."""
_CUDA_RESERVE = 600 * 2**20
"""CUDA's context with the kernels that are loaded on first use, the workspace of cuBLAS, and what
the caching allocator loses between its blocks."""
_RESERVE_SHARE = 0.05
"""Of the free memory, where the device is no CUDA card: other programs go on allocating."""


@dataclass(frozen=True, slots=True)
class TargetDevice:
    """Where a model would run."""

    device: str
    dtype: torch.dtype
    free_bytes: int

    @classmethod
    def here(cls, device: torch.device, dtype: torch.dtype) -> Self:
        """Return this machine as it is now."""
        return cls(str(device), dtype, free_bytes(device))

    @classmethod
    def hypothetical(cls, device: str, dtype: DType, free: int) -> Self:
        """Return a machine with `free` bytes; `auto` is a CUDA card that computes in bfloat16."""
        if device.partition(":")[0] not in ("auto", "cuda"):
            chosen = choose_device(device)
            return cls(str(chosen), choose_dtype(dtype, chosen), free)
        native = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        return cls("cuda" if device == "auto" else device, native, free)

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]

    @property
    def reserve_bytes(self) -> int:
        """What no plan gives away."""
        if self.kind == "cuda":
            return _CUDA_RESERVE
        return int(self.free_bytes * _RESERVE_SHARE)


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """A model, on a machine, as somebody wants it. All sizes in bytes."""

    shape: ModelShape
    machine: TargetDevice
    quant: Quant
    limits: MemoryLimits

    @property
    def rows(self) -> int:
        if not self.shape.batched:
            return 1
        return DEFAULT_MAX_ROWS if self.limits.max_rows is None else self.limits.max_rows

    @property
    def longest(self) -> int:
        """The context that was asked for, as far as the model goes."""
        asked = self.limits.context_length
        return self.shape.context_length if asked is None else min(asked, self.shape.context_length)

    @property
    def least(self) -> int:
        """The context without which there is no point in starting."""
        asked = self.limits.context_length
        return min(self.longest, MIN_CONTEXT) if asked is None else self.longest

    @property
    def weights(self) -> int:
        machine = self.machine
        return self.shape.weight_bytes(machine.dtype, self.quant, int4=machine.kind == "cpu")

    @property
    def kv_most(self) -> int:
        """What the KV cache may take, however much is free."""
        if self.limits.kv_bytes is not None:
            return self.limits.kv_bytes
        share = _CPU_SHARE if self.machine.kind == "cpu" else 1
        return int(self.machine.free_bytes * share)

    def kv(self, tokens: int) -> int:
        """Keys and values of one row of `tokens`."""
        return self.shape.kv_bytes(tokens, self.machine.dtype.itemsize, self.limits.kv_quant)

    def activations(self, context: int) -> int:
        itemsize = self.machine.dtype.itemsize
        return self.shape.activation_bytes(context, self.rows, itemsize, self.quant)

    def left_for_kv(self, context: int) -> int:
        """What the KV cache could have with this context; below 0 where the rest is too much."""
        machine = self.machine
        fixed = self.weights + machine.reserve_bytes + self.activations(context)
        return min(machine.free_bytes - fixed, self.kv_most)

    @property
    def reach(self) -> int:
        """The longest context that fits for one row, in whole steps; 0 if none does."""
        # Every part grows with the context, so what fits is an unbroken beginning.
        fitting = bisect_left(
            range(1, self.longest + 1), 1, key=lambda c: self.kv(c) > self.left_for_kv(c)
        )
        return fitting if fitting == self.longest else fitting // CONTEXT_STEP * CONTEXT_STEP

    @property
    def context(self) -> int:
        """The context to run with; 0 if the model does not fit."""
        return self.reach if self.reach >= self.least else 0
