"""Linear layers for CPUs with 16-bit or 8-bit weights, packed for FBGEMM or oneDNN.

Both take and return float32 or bfloat16, and have no gradients. The result of a row does not depend
on the other rows of the batch, within the rounding of float32. docs/performance.md has their times
and losses beside other kernels.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn

from llmctl.engine.batching.bucket_size import bucket_size

_MAX_FLOAT16 = 65504.0
_INPUT_MAX = 127
"""Inputs are rounded to -127 ... 127; their sign costs one of eight bits."""
_ZERO_POINT = 128


def fbgemm_supported() -> bool:
    """Whether this processor and this PyTorch have the kernels (x86-64 with AVX2)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class _PackedLinear(nn.Module):
    """An `nn.Linear` whose weights a library holds in a format of its own.

    It is created without weights; see `set_weight`.

    Attributes:
        weight: empty, for code that asks for its device and type.
        weight_bytes: memory of the packed weights.
    """

    bytes_per_weight: ClassVar[int]
    weight: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features = inputs
        self.out_features = outputs
        self.weight_bytes = 0
        self._packed: Any = None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Return a layer with the weights `weight` (outputs, inputs)."""
        layer = cls(weight.shape[1], weight.shape[0], bias)
        layer.set_weight(weight)
        return layer

    def set_weight(self, weight: Tensor) -> None:
        """Set the weights to `weight` (outputs, inputs), packed."""
        self._set(self._pack(weight))

    def _set(self, packed: Any) -> None:
        self._packed = packed
        self.weight_bytes = self.bytes_per_weight * self.in_features * self.out_features
        before = self._parameters.pop("weight", None)
        dtype = torch.float32 if before is None else before.dtype
        self.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)

    @classmethod
    def concatenate(cls, layers: Sequence[Self]) -> Self:
        """Return one layer with the outputs of all, which have equal inputs."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        joined = cls(
            layers[0].in_features,
            sum(layer.out_features for layer in layers),
            torch.cat(biases) if biases else None,
        )
        joined._set(cls._join([layer._packed for layer in layers]))
        return joined

    def release_weights(self) -> None:
        """Free the weights, after another layer has taken a copy."""
        self._packed, self.weight_bytes = None, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the product (..., outputs) of `x` (..., inputs)."""
        return self.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.out_features)

    def multiply(self, x: Tensor) -> Tensor:
        """Return the product (tokens, outputs) of `x` (tokens, inputs)."""
        y = self._product(x.float().contiguous()).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def _product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _pack(weight: Tensor) -> Any:
        raise NotImplementedError

    @staticmethod
    def _join(packed: Sequence[Any]) -> Any:
        raise NotImplementedError


class Float16Linear(_PackedLinear):
    """A linear layer with float16 weights and float32 arithmetic.

    The weights of a bfloat16 checkpoint are exact in float16 down to 6e-5 in size, and within 3e-8
    below. A matrix with larger values than float16 has stays in float32.
    """

    bytes_per_weight = 2

    def _product(self, x: Tensor) -> Tensor:
        if isinstance(self._packed, Tensor):
            return F.linear(x, self._packed)
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return y

    def _set(self, packed: Any) -> None:
        super()._set(packed)
        if isinstance(packed, Tensor):
            self.weight_bytes = packed.nbytes

    @staticmethod
    def _pack(weight: Tensor) -> Any:
        weight = weight.detach().float().contiguous()
        # FBGEMM clamps larger values, in the tensor that it is given.
        if not bool(weight.abs().amax() <= _MAX_FLOAT16):
            return weight
        return torch.ops.quantized.linear_prepack_fp16(weight, None)

    @staticmethod
    def _join(packed: Sequence[Any]) -> Any:
        unpack = torch.ops.quantized.linear_unpack_fp16
        parts = [p if isinstance(p, Tensor) else unpack(p)[0] for p in packed]
        return Float16Linear._pack(torch.cat(parts))


class Int8Linear(_PackedLinear):
    """A linear layer with 8-bit weights, a scale per output, and inputs rounded to 8 bits per row.

    `torch.ops.quantized.linear_dynamic` rounds all rows of a batch with one scale, so that a row
    depends on the others; for SmolLM2-135M that raises the loss by a third (docs/performance.md).
    oneDNN multiplies where the processor has VNNI instructions, FBGEMM elsewhere.
    """

    bytes_per_weight = 1

    def _product(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30).div_(_INPUT_MAX)
        y: Tensor = self._packed.multiply(x / scale)
        return y.mul_(scale)

    @staticmethod
    def _pack(weight: Tensor) -> Any:
        kind = _OneDnnWeights if _has_vnni() else _FbgemmWeights
        weight = weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_(min=1e-30).div_(kind.largest)
        return kind((weight / scales.unsqueeze(1)).round_().to(torch.int8), scales)

    @staticmethod
    def _join(packed: Sequence[Any]) -> Any:
        codes = torch.cat([part.codes() for part in packed])
        return type(packed[0])(codes, torch.cat([part.scales for part in packed]))


class _FbgemmWeights:
    """8-bit weights in FBGEMM's format.

    Args:
        codes: (outputs, inputs), from `-largest` to `largest`.
        scales: (outputs,).
    """

    largest: ClassVar[int] = 63
    """FBGEMM adds pairs of products in 16 bits, where 2 * 255 * 127 overflows."""

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.scales = scales
        zeros = torch.zeros(len(codes), dtype=torch.long)
        with warnings.catch_warnings(action="ignore"):  # torch 2.13 announces their removal
            tensor = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)

    def codes(self) -> Tensor:
        codes: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0].int_repr()
        return codes

    def multiply(self, x: Tensor) -> Tensor:
        """Return the product (tokens, outputs) of `x` (tokens, inputs), from -127 to 127."""
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = product(x, 1.0, _ZERO_POINT, self._packed)
        return y


class _OneDnnWeights:
    """8-bit weights in oneDNN's format; arguments as of `_FbgemmWeights`."""

    largest: ClassVar[int] = 127

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.scales = scales
        self._zeros = torch.zeros(len(codes), dtype=torch.int32)
        self._packed: Tensor = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)

    def codes(self) -> Tensor:
        return self._packed.to_dense().t()

    def multiply(self, x: Tensor) -> Tensor:
        """Return the product (tokens, outputs) of `x` (tokens, inputs), from -127 to 127."""
        rows = x.shape[0]
        rounded = x.round().add_(_ZERO_POINT).to(torch.uint8)
        # oneDNN prepares a kernel for every number of rows.
        rounded = F.pad(rounded, (0, 0, 0, bucket_size(rows) - rows))
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rounded, 1.0, _ZERO_POINT, self._packed, self.scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return y[:rows]


@cache
def _has_vnni() -> bool:
    """Whether this processor adds products of bytes in 32 bits, and PyTorch may use that."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return bool(torch.cpu._is_vnni_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_vnni"))
