"""4-bit linear layers for CPUs, in the layout of PyTorch's kernel.

Each group of 32 consecutive weights shares a scale and an offset, five bits per weight in all:

    weight = (code - 8) * scale + offset,   code = 0 ... 15

The grid is that of llama.cpp's Q4_1. On a CPU it approximates the weights better than bitsandbytes'
NF4 and is faster for one row and for a thousand (docs/performance.md). A GPU uses NF4.
"""

from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn

from llmctl.engine.batching.bucket_size import bucket_size

GROUP_SIZE = 32
"""Number of weights of one output that share a scale and an offset."""
BYTES_PER_WEIGHT = 0.5 + 2 * 2 / GROUP_SIZE
_MAX_KERNEL_ROWS = 48
"""Up to this many rows PyTorch's kernel, which does not dequantise the weights, is faster."""
_BLOCKS = (64, 32)
"""Number of outputs whose codes the kernel interleaves: with AVX-512, with AVX2."""
DEQUANTISED_WEIGHTS = 2**21
"""Number of weights that are dequantised at once for many rows; they fit the cache of a core."""
_QUANTISED_OUTPUTS = 1024
"""Number of outputs that are quantised at once, which takes several copies in float32."""


def int4_supported() -> bool:
    """Whether this processor and this PyTorch support the layers."""
    return _block() is not None


class Int4Linear(nn.Module):
    """A 4-bit `nn.Linear` whose number of inputs is a multiple of `GROUP_SIZE`.

    It is created without weights; see `set_weight`.

    Args:
        dequantised_weights: number of weights to dequantise at once for many rows.

    Attributes:
        weight: codes in the layout of the kernel, (outputs, inputs / 2) bytes.
        scales: scale and offset of each group in bfloat16, (inputs / 32, outputs, 2). The outputs
            of `scales` and `weight` are padded to whole blocks of the kernel.
        padded: whether there are padded outputs.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: Tensor | None = None,
        *,
        dequantised_weights: int = DEQUANTISED_WEIGHTS,
    ) -> None:
        super().__init__()
        self.in_features = inputs
        self.out_features = outputs
        self.padded = False
        self._dequantised_weights = dequantised_weights
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Return a layer with the weights `weight` (outputs, inputs), quantised."""
        layer = cls(weight.shape[1], weight.shape[0], bias)
        layer.set_weight(weight)
        return layer

    def set_weight(self, weight: Tensor) -> None:
        """Set the weights to `weight` (outputs, inputs), quantised."""
        parts = [_quantise(part) for part in weight.split(_QUANTISED_OUTPUTS)]
        self._set(torch.cat([codes for codes, _ in parts]), torch.cat([s for _, s in parts], 1))

    def _set(self, codes: Tensor, scales: Tensor) -> None:
        self._parameters.pop("weight", None)
        self.register_buffer("weight", codes)
        self.register_buffer("scales", scales)
        self.padded = scales.shape[1] > self.out_features

    @classmethod
    def concatenate(cls, layers: Sequence[Self]) -> Self:
        """Return one layer with the outputs of all. They have equal inputs and are not padded."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        joined = cls(
            layers[0].in_features,
            sum(layer.out_features for layer in layers),
            torch.cat(biases) if biases else None,
        )
        joined._set(
            torch.cat([layer.weight for layer in layers]),
            torch.cat([layer.scales for layer in layers], dim=1),
        )
        return joined

    def release_weights(self) -> None:
        """Free the weights, after another layer has taken a copy."""
        self.weight, self.scales = self.weight.new_empty(0), self.scales.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product (..., outputs) of `x` (..., inputs)."""
        return self.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.out_features)

    def multiply(self, x: Tensor) -> Tensor:
        """Return the product (tokens, outputs) of `x` (tokens, inputs)."""
        y = (
            self._multiply_quantised(x)
            if x.shape[0] <= _MAX_KERNEL_ROWS
            else self._multiply_dequantised(x)
        )
        if self.padded:
            y = y[:, : self.out_features]
        return y if self.bias is None else y + self.bias

    def _multiply_quantised(self, x: Tensor) -> Tensor:
        # PyTorch's fast kernel is for bfloat16 only, also on processors without native bfloat16.
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        y: Tensor = product(x.bfloat16().contiguous(), self.weight, GROUP_SIZE, self.scales)
        return y.to(x.dtype)

    def _multiply_dequantised(self, x: Tensor) -> Tensor:
        rows, outputs = x.shape[0], self.scales.shape[1]
        x = F.pad(x, (0, 0, 0, bucket_size(rows) - rows))
        block = 2 * _half_block()
        step = max(self._dequantised_weights // self.in_features // block, 1) * block
        parts = [x @ self._dequantise(at, at + step, x.dtype) for at in range(0, outputs, step)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[:rows]

    def _dequantise(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """Return the weights (inputs, outputs) of some outputs, in whole blocks."""
        half = _half_block()
        scale, offset = self.scales[:, None, first:end].to(dtype).movedim(-1, 0).contiguous()
        codes = self.weight[first:end].view(-1, self.in_features, half).transpose(0, 1)
        weight = torch.empty(self.in_features, codes.shape[1], 2, half, dtype=dtype)
        weight[:, :, 0] = (codes & 15).sub_(8).view(torch.int8)
        weight[:, :, 1] = (codes >> 4).sub_(8).view(torch.int8)
        groups = weight.view(-1, GROUP_SIZE, scale.shape[-1])
        torch.addcmul(offset, groups, scale, out=groups)
        return weight.view(self.in_features, -1)


def _quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of `weight` (outputs, inputs), padded to whole blocks."""
    block = 2 * _half_block()
    padding = -weight.shape[0] % block
    groups = F.pad(weight.float(), (0, 0, 0, padding)).unflatten(1, (-1, GROUP_SIZE))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    scale, offset = _round_scales(scale, low + 8 * scale)
    codes = _nearest(groups, scale, offset)
    # Minimum and maximum seldom give the best scale and offset: fit both to the codes by least
    # squares. The new codes may be worse, and then are not used.
    mean, middle = codes.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    spread = (codes - mean).square().sum(-1, keepdim=True)
    slope = ((codes - mean) * (groups - middle)).sum(-1, keepdim=True) / spread
    slope = torch.where(spread > 0, slope, scale)
    fitted = _round_scales(slope, middle - slope * mean)
    refined = _nearest(groups, *fitted)
    better = _error(groups, refined, *fitted) < _error(groups, codes, scale, offset)
    codes = torch.where(better, refined, codes)
    scales = torch.cat(
        (torch.where(better, fitted[0], scale), torch.where(better, fitted[1], offset)), dim=-1
    )
    packed = _pack((codes + 8).flatten(1))
    return packed, scales.transpose(0, 1).bfloat16().contiguous()


def _round_scales(scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Round both to bfloat16; a group of equal weights gets the scale 1."""
    scale = torch.where(scale > 0, scale, 1.0)
    return scale.bfloat16().float(), offset.bfloat16().float()


def _nearest(groups: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return the codes minus 8."""
    return ((groups - offset) / scale).round_().clamp_(-8, 7)


def _error(groups: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return (codes * scale + offset - groups).square_().sum(-1, keepdim=True)


def _pack(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


def _half_block() -> int:
    block = _block()
    assert block is not None, "check `int4_supported` first"
    return block // 2


@cache
def _block() -> int | None:
    """Return the number of outputs that this processor's kernel interleaves; `None` if unknown.

    A byte holds the code of output n of a block and that of output n + block / 2. PyTorch does not
    document the layout, so it is detected.
    """
    codes = torch.arange(2 * max(_BLOCKS) * GROUP_SIZE).view(-1, GROUP_SIZE) * 7 // 5 % 16
    try:
        packed = _pack(codes)
    except (AttributeError, RuntimeError):
        return None
    for block in _BLOCKS:
        halves = packed.view(-1, GROUP_SIZE, block // 2).transpose(1, 2)
        if torch.equal(torch.cat((halves & 15, halves >> 4), dim=1).flatten(0, 1), codes):
            return block
    return None
