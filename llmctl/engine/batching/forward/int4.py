"""Linear layers in four bits for a CPU, in the layout of PyTorch's own kernel.

Each 32 weights that lie beside each other share a scale and an offset, five bits a weight in all:

    weight = (code - 8) * scale + offset,   code = 0 ... 15

It is the grid of llama.cpp's Q4_1. On a CPU it is nearer to the weights than bitsandbytes' NF4 and
takes less time for one row and for a thousand (docs/performance.md); a card keeps NF4.
"""

from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn

from llmctl.engine.batching.forward.bucket_size import bucket_size

GROUP_SIZE = 32
"""Weights of one output that share a scale and an offset."""
BYTES_PER_WEIGHT = 0.5 + 2 * 2 / GROUP_SIZE
_FEW_ROWS = 48
"""Up to so many rows PyTorch's kernel, which writes no weights out, is faster."""
_BLOCKS = (64, 32)
"""Outputs whose codes the kernel interleaves: with AVX-512, with AVX2."""
_WEIGHTS_AT_ONCE = 2**21
"""Written out for many rows: what fits the cache of a core."""
_OUTPUTS_AT_ONCE = 1024
"""While quantising, which takes several copies in float32."""


def int4_supported() -> bool:
    """Whether layers can be held like this on this processor, with this PyTorch."""
    return _block() is not None


class Int4Linear(nn.Module):
    """An `nn.Linear` in four bits, of a multiple of `GROUP_SIZE` inputs. Built empty; see `take`.

    Attributes:
        weight: codes as the kernel wants them, (outputs, inputs / 2) bytes.
        scales: scale and offset of each group in bfloat16, (inputs / 32, outputs, 2). Its outputs,
            as those of `weight`, are filled up to whole blocks of the kernel.
        filled: whether there are such.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features = inputs
        self.out_features = outputs
        self.filled = False
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, False))

    def take(self, weight: Tensor) -> None:
        """Quantise `weight` (outputs, inputs)."""
        parts = [_quantised(part) for part in weight.split(_OUTPUTS_AT_ONCE)]
        self._hold(torch.cat([codes for codes, _ in parts]), torch.cat([s for _, s in parts], 1))

    def _hold(self, codes: Tensor, scales: Tensor) -> None:
        self._parameters.pop("weight", None)
        self.register_buffer("weight", codes)
        self.register_buffer("scales", scales)
        self.filled = scales.shape[1] > self.out_features

    @classmethod
    def side_by_side(cls, layers: Sequence[Self]) -> Self:
        """Return one layer with the outputs of all; they have the same inputs and fill nothing."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        joined = cls(
            layers[0].in_features,
            sum(layer.out_features for layer in layers),
            torch.cat(biases) if biases else None,
        )
        joined._hold(
            torch.cat([layer.weight for layer in layers]),
            torch.cat([layer.scales for layer in layers], dim=1),
        )
        return joined

    def give_up(self) -> None:
        """Let go of what is held, once another layer has it."""
        self.weight, self.scales = self.weight.new_empty(0), self.scales.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product (..., outputs) of `x` (..., inputs)."""
        return self.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.out_features)

    def multiply(self, x: Tensor) -> Tensor:
        """Return the product (tokens, outputs) of `x` (tokens, inputs)."""
        y = self._few(x) if x.shape[0] <= _FEW_ROWS else self._many(x)
        if self.filled:
            y = y[:, : self.out_features]
        return y if self.bias is None else y + self.bias

    def _few(self, x: Tensor) -> Tensor:
        # PyTorch has a fast kernel for bfloat16 alone; on a processor without that type, too.
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        y: Tensor = product(x.bfloat16().contiguous(), self.weight, GROUP_SIZE, self.scales)
        return y.to(x.dtype)

    def _many(self, x: Tensor) -> Tensor:
        rows, outputs = x.shape[0], self.scales.shape[1]
        x = F.pad(x, (0, 0, 0, bucket_size(rows) - rows))
        block = 2 * _half_block()
        step = max(_WEIGHTS_AT_ONCE // self.in_features // block, 1) * block
        parts = [x @ self._written_out(at, at + step, x.dtype) for at in range(0, outputs, step)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[:rows]

    def _written_out(self, first: int, end: int, dtype: torch.dtype) -> Tensor:
        """Return the weights of some outputs, in whole blocks: (inputs, outputs)."""
        half = _half_block()
        scale, offset = self.scales[:, None, first:end].to(dtype).movedim(-1, 0).contiguous()
        codes = self.weight[first:end].view(-1, self.in_features, half).transpose(0, 1)
        weight = torch.empty(self.in_features, codes.shape[1], 2, half, dtype=dtype)
        weight[:, :, 0] = (codes & 15).sub_(8).view(torch.int8)
        weight[:, :, 1] = (codes >> 4).sub_(8).view(torch.int8)
        groups = weight.view(-1, GROUP_SIZE, scale.shape[-1])
        torch.addcmul(offset, groups, scale, out=groups)
        return weight.view(self.in_features, -1)


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of `weight` (outputs, inputs), filled up to whole blocks."""
    block = 2 * _half_block()
    filling = -weight.shape[0] % block
    groups = F.pad(weight.float(), (0, 0, 0, filling)).unflatten(1, (-1, GROUP_SIZE))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    scale, offset = _stored(scale, low + 8 * scale)
    codes = _nearest(groups, scale, offset)
    # The ends of a group are seldom the best for what lies between: for the codes as they are, the
    # line with the least squared error. Its codes in turn may be worse, and then are not taken.
    mean, middle = codes.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    spread = (codes - mean).square().sum(-1, keepdim=True)
    slope = ((codes - mean) * (groups - middle)).sum(-1, keepdim=True) / spread
    slope = torch.where(spread > 0, slope, scale)
    fitted = _stored(slope, middle - slope * mean)
    refined = _nearest(groups, *fitted)
    better = _error(groups, refined, *fitted) < _error(groups, codes, scale, offset)
    codes = torch.where(better, refined, codes)
    scales = torch.cat(
        (torch.where(better, fitted[0], scale), torch.where(better, fitted[1], offset)), dim=-1
    )
    packed = _pack((codes + 8).flatten(1))
    return packed, scales.transpose(0, 1).bfloat16().contiguous()


def _stored(scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Round both as they are kept; where all weights of a group are alike any scale will do."""
    scale = torch.where(scale > 0, scale, 1.0)
    return scale.bfloat16().float(), offset.bfloat16().float()


def _nearest(groups: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return the codes less 8."""
    return ((groups - offset) / scale).round_().clamp_(-8, 7)


def _error(groups: Tensor, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return (codes * scale + offset - groups).square_().sum(-1, keepdim=True)


def _pack(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


def _half_block() -> int:
    block = _block()
    assert block is not None, "asked `supported` first"
    return block // 2


@cache
def _block() -> int | None:
    """Return how many outputs the kernel of this processor interleaves; `None` if it is unknown.

    A byte holds the codes of output n of a block and of the one half a block on. That is no promise
    of PyTorch's, so it is tried.
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
