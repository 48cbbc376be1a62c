"""Fused linear layers: layers with the same input as one matrix, packed for the processor."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from llmctl.engine.batching.bucket_size import bucket_size
from llmctl.engine.batching.forward.int4 import Int4Linear
from llmctl.engine.batching.forward.packed_linear import Float16Linear, Int8Linear

Linear = Callable[[Tensor], Tensor]
"""(tokens, inputs) -> (tokens, outputs)."""


_PACKED = (Int4Linear, Int8Linear, Float16Linear)


def fuse(modules: Sequence[nn.Module], *, release: bool = False) -> Linear:
    """Return one function for linear layers of the same input, with concatenated outputs.

    Plain layers become one matrix, and so do packed layers of one kind. Others are called one by
    one.

    Args:
        modules: one or more, with the same input.
        release: free the modules' own weights, so that no weight is held twice.
    """
    kind = type(modules[0])
    if kind in _PACKED and all(
        type(m) is kind and not getattr(m, "padded", False) for m in modules
    ):
        return _fuse_packed(modules, release)
    if not all(type(m) is nn.Linear for m in modules):
        return _call_each(modules)
    plain: list[Any] = list(modules)
    weight = torch.cat([m.weight for m in plain]) if len(plain) > 1 else plain[0].weight.detach()
    biases = [m.bias for m in plain]
    if any((b is None) != (biases[0] is None) for b in biases):
        return _call_each(modules)
    bias = None if biases[0] is None else torch.cat(biases)
    for module in plain if release else ():
        module.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return packed_linear(weight, bias)


def _fuse_packed(layers: Sequence[Any], release: bool) -> Linear:
    if len({layer.bias is None for layer in layers}) > 1:
        return _call_each(layers)
    fused = layers[0] if len(layers) == 1 else type(layers[0]).concatenate(layers)
    for layer in layers if release and len(layers) > 1 else ():
        layer.release_weights()
    multiply: Linear = fused.multiply
    return multiply


def packed_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return the product with `weight` (outputs, inputs), packed once where that is faster.

    On a CPU oneDNN repacks a bfloat16 weight at every call of `F.linear`; packed once, a few rows
    take half the time (docs/performance.md). `torch.compile` packs with the same two operators.
    """
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.bfloat16
        or not torch.backends.mkldnn.is_available()
    ):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    product = torch.ops.mkldnn._linear_pointwise

    def multiply(x: Tensor) -> Tensor:
        rows = x.shape[0]
        if (wide := bucket_size(rows)) != rows:
            x = F.pad(x, (0, 0, 0, wide - rows))
        result: Tensor = product(x, packed, bias, "none", [], "")
        return result[:rows]

    return multiply


def _call_each(modules: Sequence[nn.Module]) -> Linear:
    if len(modules) == 1:
        only = modules[0]
        return lambda x: only(x)
    return lambda x: torch.cat([module(x) for module in modules], dim=-1)
