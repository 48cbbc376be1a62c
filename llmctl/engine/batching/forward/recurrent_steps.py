"""One step of recurrent layers on a CPU, in fewer and smaller operations than Transformers' own.

Transformers calls these functions by name from the module of each model type. Without extra
packages its own run a convolution, and hold the state several times, for a single token.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_Function = Callable[..., Any]


def use_cpu_steps(model: Any) -> None:
    """Let the layers of a model compute single tokens with the functions below.

    Args:
        model: of Transformers, on a CPU. Other models of its type in this process change too.
    """
    modules = {sys.modules[type(layer).__module__] for layer in model.modules()}
    for module in modules:
        for name, replace in _REPLACEMENTS.items():
            original = getattr(module, name, None)
            if original is not None and not hasattr(original, "for_more_tokens"):
                setattr(module, name, replace(original))


def _convolution(original: _Function) -> _Function:
    @wraps(original)
    def update(
        hidden_states: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Return (rows, channels, 1) and move the new inputs into `conv_state` in place."""
        width = weight.shape[-1]
        if hidden_states.shape[-1] != 1 or conv_state.shape[-1] < width:
            result: Tensor = original(hidden_states, conv_state, weight, bias, activation)
            return result
        from transformers.activations import ACT2FN

        moved = torch.cat((conv_state[:, :, 1:], hidden_states), -1)
        conv_state.copy_(moved)
        out = (moved[:, :, -width:].float() * weight.float()).sum(-1, keepdim=True)
        if bias is not None:
            out = out + bias[:, None]
        out = out.to(hidden_states.dtype)
        return out if activation is None else ACT2FN[activation](out)

    update.for_more_tokens = original  # type: ignore[attr-defined]
    return update


def _gated_delta_rule(original: _Function) -> _Function:
    @wraps(original)
    def step(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return (rows, 1, value heads, value dim), and the state, changed in place.

        The gated delta rule (Yang et al. 2025, equation 10).
        """
        if (
            initial_state is None
            or initial_state.dtype != torch.float32
            or not initial_state.is_contiguous()
            or query.shape[1] != 1
            or torch.is_grad_enabled()
            or others.get("cu_seqlens") is not None
        ):
            result: tuple[Tensor, Tensor | None] = original(
                query,
                key,
                value,
                g=g,
                beta=beta,
                initial_state=initial_state,
                output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
                **others,
            )
            return result
        rows, _, heads, value_dim = value.shape
        key_dim = key.shape[-1]
        both = torch.stack((query[:, 0], key[:, 0])).float()  # (2, rows, key heads, key dim)
        if use_qk_l2norm_in_kernel:
            both = both * torch.rsqrt((both * both).sum(-1, keepdim=True) + 1e-6)
        if both.shape[2] != heads:
            both = both.repeat_interleave(heads // both.shape[2], dim=2)
        both = both.reshape(2, rows * heads, 1, key_dim)
        scaled_query, unit_key = both[0] * key_dim**-0.5, both[1]
        # The cache's own tensor, which the step replaces.
        state = initial_state.view(rows * heads, key_dim, value_dim)
        state.mul_(g[:, 0].float().exp().reshape(-1, 1, 1))
        known = torch.bmm(unit_key, state)
        delta = value[:, 0].float().reshape(-1, 1, value_dim) - known
        delta = delta * beta[:, 0].float().reshape(-1, 1, 1)
        state.baddbmm_(unit_key.transpose(1, 2), delta)
        out = torch.bmm(scaled_query, state).view(rows, 1, heads, value_dim).to(query.dtype)
        return out, initial_state if output_final_state else None

    step.for_more_tokens = original  # type: ignore[attr-defined]
    return step


_REPLACEMENTS: dict[str, Callable[[_Function], _Function]] = {
    "causal_conv1d_update": _convolution,
    "torch_recurrent_gated_delta_rule": _gated_delta_rule,
}
