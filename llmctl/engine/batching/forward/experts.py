"""The experts of a mixture with quantised weights.

Transformers holds the matrices of all experts of a layer in two tensors, which quantised linear
layers cannot replace. Here each expert has two linear layers of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LinearFactory = Callable[[Tensor], nn.Module]
"""Returns a quantised linear layer without bias for a weight (outputs, inputs)."""


class QuantisedExperts(nn.Module):
    """Computes what a module of Transformers' experts interface computes.

    It is created without weights: `gate_up_proj` (or `up_proj`) and `down_proj` are the parameters
    that the weights are read into; `set_weight` replaces them by the quantised layers.

    Args:
        source: the experts, on the meta device.
        quantise: makes the layers.
    """

    def __init__(self, source: Any, quantise: LinearFactory) -> None:
        super().__init__()
        self.num_experts: int = source.num_experts
        self._is_transposed: bool = source.is_transposed
        # Bound methods are no submodules: the source keeps its activation only.
        self._activate: Callable[[Tensor], Tensor] = (
            source._apply_gate if source.has_gate else source.act_fn
        )
        self._quantise = quantise
        self._names = ("gate_up_proj" if source.has_gate else "up_proj", "down_proj")
        self.layers = nn.ModuleDict()
        for name in self._names:
            self.register_parameter(name, source._parameters.pop(name))
            bias = source._parameters.pop(f"{name}_bias", None)
            self.register_parameter(f"{name}_bias", bias)

    @staticmethod
    def replaces(module: nn.Module, multiple: int = 1) -> bool:
        """Whether a module is of Transformers' experts interface, and can be replaced.

        Args:
            module: any.
            multiple: the number of inputs of each matrix must be a multiple of it.
        """
        needed = ("num_experts", "is_transposed", "has_gate", "has_post_expert_norm")
        if not all(hasattr(module, name) for name in needed) or module.has_post_expert_norm:
            return False
        inputs = 1 if module.is_transposed else 2
        matrices = [p for p in module.parameters(recurse=False) if p.ndim == 3]
        return len(matrices) == 2 and all(p.shape[inputs] % multiple == 0 for p in matrices)

    def set_weight(self, name: str, weight: Tensor) -> None:
        """Quantise the matrices (experts, ...) of all experts into their layers."""
        matrices = weight.transpose(1, 2) if self._is_transposed else weight
        del self._parameters[name]
        self.layers[name] = nn.ModuleList(
            self._quantise(matrix.contiguous()) for matrix in matrices
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum (tokens, hidden) of the chosen experts.

        Args:
            hidden_states: (tokens, hidden).
            top_k_index: experts of each token (tokens, k); `num_experts` stands for none.
            top_k_weights: (tokens, k).
        """
        result = torch.zeros_like(hidden_states)
        chosen = top_k_index.flatten()
        order = chosen.argsort()
        rows, weights = order // top_k_index.shape[-1], top_k_weights.flatten()[order, None]
        counts = torch.bincount(chosen, minlength=self.num_experts).tolist()
        start = 0
        for expert, count in enumerate(counts[: self.num_experts]):
            if count:
                own = slice(start, start + count)
                part = self._expert(expert, hidden_states[rows[own]]) * weights[own]
                result.index_add_(0, rows[own], part.to(result.dtype))
            start += count
        return result

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        up, down = self._names
        return self._linear(down, expert, self._activate(self._linear(up, expert, x)))

    def _linear(self, name: str, expert: int, x: Tensor) -> Tensor:
        layers: Any = self.layers[name]
        y: Tensor = layers[expert](x)
        bias = self._parameters[f"{name}_bias"]
        return y if bias is None else y + bias[expert]
