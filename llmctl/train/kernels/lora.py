"""A frozen linear layer with LoRA as one autograd function.

PEFT computes adapters in float32 with an operator for each cast, product and sum, and autograd
keeps the inputs of each. As one function the adapter is computed in the model's type, with a third
of the operators, and only the input is kept, which other layers share. The adapter weights stay in
float32.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LoraLinear(torch.autograd.Function):
    """`x @ weight.T + bias + scale * (x @ down.T) @ up.T`, gradients for x, down and up.

    Shapes: x (rows, in), weight (out, in), bias (out,) or None, down (rank, in), up (out, rank).
    Without a weight it is the adapter's term alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        narrow, wide = down.to(x.dtype), (up * scale).to(x.dtype)
        inner = x @ narrow.T
        out = inner @ wide.T if weight is None else F.linear(x, weight, bias).addmm_(inner, wide.T)
        ctx.save_for_backward(x, inner, weight, narrow, wide)
        ctx.scale, ctx.type = scale, down.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, narrow, wide = ctx.saved_tensors
        grad_inner = grad @ wide
        grad_x = None
        if ctx.needs_input_grad[0]:
            if weight is None:
                grad_x = grad_inner @ narrow
            else:
                grad_x = (grad @ weight).addmm_(grad_inner, narrow)
        grad_down = (grad_inner.T @ rows).to(ctx.type)
        grad_up = (grad.T @ inner).to(ctx.type).mul_(ctx.scale)
        return grad_x, None, None, grad_down, grad_up, None


def use_fused_lora(model: nn.Module) -> bool:
    """Use it in the plain LoRA layers of a PEFT model; return whether all layers are plain.

    A layer with DoRA, dropout, an adapter bias or several adapters keeps PEFT's forward.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    plain = [layer for layer in layers if _is_plain(layer)]
    for layer in plain:
        layer.forward = partial(_forward, layer)
    return len(plain) == len(layers)


_PLAIN = frozenset(("Linear", "Linear4bit", "Linear8bitLt"))
"""PEFT's classes for linear layers. `ParamWrapper`, for the experts of a mixture, is another."""


def _is_plain(layer: Any) -> bool:
    names = list(layer.lora_A)
    if type(layer).__name__ not in _PLAIN:
        return False
    if len(names) != 1 or layer.lora_variant or getattr(layer, "fan_in_fan_out", False):
        return False
    (name,) = names
    linear = isinstance(layer.lora_A[name], nn.Linear)
    dropout = not isinstance(layer.lora_dropout[name], nn.Identity)
    return linear and not dropout and layer.lora_B[name].bias is None


def _forward(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base = layer.base_layer
    if layer.disable_adapters or layer.merged:
        plain: Tensor = base(x)
        return plain
    (name,) = layer.lora_A
    adapter = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    apply: Any = _LoraLinear.apply
    # Outside of the function: a model may change the output in place, but not a view of its making.
    rows = x.reshape(-1, x.shape[-1])
    whole: Tensor
    if type(base) is nn.Linear:
        whole = apply(rows, base.weight, base.bias, *adapter).view(*x.shape[:-1], -1)
    else:  # a quantized layer, with its own forward and backward
        whole = base(x) + apply(rows, None, None, *adapter).view(*x.shape[:-1], -1)
    return whole
