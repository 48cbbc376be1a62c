"""RMS norms and gated feed-forward layers that keep fewer tensors for the backward pass.

Autograd keeps the inputs of each operator: for a norm its input in float32, for a gated layer four
products. As one function each keeps its inputs only and recomputes the rest, which costs less than
the memory traffic. Models name these layers differently, and some change the formula: a layer is
replaced only if its output equals the output of the function here.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _RmsNorm(torch.autograd.Function):
    """`x / sqrt(mean(x^2) + epsilon) * weight` with a frozen weight (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        return wide.mul(scale).to(x.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight = ctx.saved_tensors
        normed = x.float() * scale  # in float32 the input itself must stay
        weighted = (grad * weight).float()
        along = (weighted * normed).mean(-1, keepdim=True)
        return weighted.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), None, None


class _GatedSilu(torch.autograd.Function):
    """`silu(gate) * up` (Shazeer 2020, GLU Variants)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def _norm(layer: Any, epsilon: float, x: Tensor) -> Tensor:
    if x.shape[-1] != layer.weight.shape[-1]:  # the layer serves inputs of several widths
        own: Tensor = type(layer).forward(layer, x)
        return own
    apply: Any = _RmsNorm.apply
    normed: Tensor = apply(x, layer.weight, epsilon)
    return normed


def _gated(layer: Any, x: Tensor) -> Tensor:
    apply: Any = _GatedSilu.apply
    out: Tensor = layer.down_proj(apply(layer.gate_proj(x), layer.up_proj(x)))
    return out


def use_memory_efficient_layers(model: nn.Module) -> None:
    """Replace the forward of all layers that are equal; norms with trainable weights stay."""
    is_equal: dict[tuple[type[nn.Module], float], bool] = {}
    for layer in model.modules():
        replacement = _replacement(layer)
        if replacement is None:
            continue
        forward, key = replacement
        if key not in is_equal:
            is_equal[key] = _is_equal(layer, forward, model)
        if is_equal[key]:
            layer.forward = forward


def _replacement(layer: Any) -> tuple[Any, tuple[type[nn.Module], float]] | None:
    """Return the forward that may replace a layer's own, and a key of layers with equal code."""
    kind = type(layer)
    if kind.__name__.endswith("RMSNorm"):
        epsilon = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
        weight = getattr(layer, "weight", None)
        if epsilon is not None and isinstance(weight, Tensor) and not weight.requires_grad:
            return partial(_norm, layer, epsilon), (kind, epsilon)
    elif all(  # not for mixtures of experts, whose weights are one tensor
        isinstance(getattr(layer, name, None), nn.Module)
        for name in ("gate_proj", "up_proj", "down_proj", "act_fn")
    ):
        return partial(_gated, layer), (kind, 0.0)
    return None


@torch.no_grad()
def _is_equal(layer: Any, forward: Any, model: Any) -> bool:
    """Compare both forwards on a random input."""
    if model.device.type == "meta":  # cannot compute
        return True
    width = len(layer.weight) if hasattr(layer, "weight") else layer.up_proj.in_features
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, width), generator=generator).to(model.device, model.dtype)
    try:
        return torch.allclose(forward(x).float(), layer(x).float(), rtol=1e-2, atol=1e-3)
    except (RuntimeError, TypeError):
        return False
