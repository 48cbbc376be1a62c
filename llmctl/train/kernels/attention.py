"""Causal attention for training on a CPU, fast for rows of a few thousand tokens.

PyTorch's CPU kernel takes several times as long as its matrix products alone, mostly in the
backward pass. Here the scores of a layer are materialized and multiplied by the BLAS library. They
are not kept: the backward pass recomputes them.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME: Final = "llmctl_cpu"
_MAX_TOKENS: Final = 4096
"""For longer rows the scores of a layer are too large to materialize."""

_SPECIAL: Final = ("position_bias", "s_aux", "softcap")
"""Arguments with which some models change their scores."""


class _CausalAttention(torch.autograd.Function):
    """`softmax(scale * q @ k.T + mask) @ v`.

    Shapes: q (batch, queries, dim), k and v (batch, seq, dim), mask (queries, seq).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = scale
        return torch.bmm(_weights(q, k, mask, scale), v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        weights = _weights(q, k, mask, ctx.scale)
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.bmm(grad_scores, k).mul_(ctx.scale)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, None, None


def _weights(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return the attention weights, shape (batch, queries, seq)."""
    scores = torch.baddbmm(mask.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scale)
    return scores.softmax(-1)


def cpu_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function for Transformers' interface; all but plain causal attention uses SDPA.

    Shapes: query (batch, heads, seq, dim), key and value (batch, key heads, seq, dim); returns
    (batch, seq, heads, dim).
    """
    batch, heads, length, dim = query.shape
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    fits = key.shape[2] == length <= _MAX_TOKENS
    special = dropout or any(others.get(name) is not None for name in _SPECIAL)
    if special or not causal or attention_mask is not None or not fits:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    key_heads = key.shape[1]
    group = heads // key_heads
    mask = torch.full((length, length), -torch.inf, dtype=value.dtype).triu_(1)
    apply: Any = _CausalAttention.apply
    # Autocast would change types in the forward pass only, not in the custom backward pass.
    with torch.autocast(query.device.type, enabled=False):
        out = apply(
            # Heads that share keys become one long row of queries.
            query.to(value.dtype).reshape(batch * key_heads, group * length, dim),
            key.to(value.dtype).reshape(batch * key_heads, length, dim),
            value.reshape(batch * key_heads, length, -1),
            mask.repeat(group, 1),
            dim**-0.5 if scaling is None else scaling,
        )
    return out.view(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def register() -> str:
    """Register it with Transformers, and return its name there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, cpu_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
