"""LoRA adapters in a batch: the weights per linear layer, and the rows that use each adapter.

Rows of one adapter are adjacent in a step, so that each adapter is two small products over a slice:
y += x A B with the scaling in B (Hu et al. 2021).
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmctl.engine.batching.forward.linear import Linear

_FEW_ROWS = 8
"""Rows of one adapter up to which a CPU is faster in float32: products of this size take less time
than the start of a bfloat16 product."""


class LoraWeights(NamedTuple):
    """The two matrices of an adapter for one linear layer."""

    down: Tensor
    """(inputs, rank)."""
    up: Tensor
    """(rank, outputs), scaled."""


LoraAdapter = Mapping[str, LoraWeights]
"""Weights by the path of the linear module within the model."""

AdapterSlices = list[tuple[str, slice]]
"""Adapter keys with the rows that use them. Updated in place at every step."""


class AdapterSegments:
    """The rows of the current step that use an adapter; rows without one are left out."""

    def __init__(self) -> None:
        self.tokens: AdapterSlices = []
        self.logits: AdapterSlices = []
        """Of the tokens for which logits are computed, the only ones that the head sees."""

    def set(self, segments: Iterable[tuple[str | None, int, int]]) -> None:
        """Record a packed step: adapter, tokens and requested logits of each sequence, in order."""
        self.tokens.clear()
        self.logits.clear()
        token = logit = 0
        for key, same in groupby(segments, lambda segment: segment[0]):
            counts = [(tokens, logits) for _, tokens, logits in same]
            tokens, logits = (sum(count) for count in zip(*counts, strict=True))
            if key is not None:
                self.tokens.append((key, slice(token, token + tokens)))
                self.logits.append((key, slice(logit, logit + logits)))
            token, logit = token + tokens, logit + logits

    def set_all(self, key: str | None) -> None:
        """Record a step that uses one adapter, or none, for all rows."""
        self.tokens[:] = self.logits[:] = [] if key is None else [(key, slice(None))]


class LoraLinear:
    """One or several linear layers of the same input, with the adapters' weights for them.

    Args:
        modules: by path; their outputs are concatenated.
        rows: adapter slices of the step, as this layer sees the rows.
        dtype: of the adapter weights, where the layers' own weights are quantised.
    """

    def __init__(self, modules: Mapping[str, Any], rows: AdapterSlices, dtype: torch.dtype) -> None:
        self._modules = modules
        self._rows = rows
        self._dtype = dtype
        self._weights: dict[str, LoraWeights] = {}

    def put(self, key: str, adapter: LoraAdapter) -> None:
        """Add the weights that an adapter has for these layers, if any."""
        own = [adapter.get(path) for path in self._modules]
        if not any(own):
            return
        weight: Tensor = next(iter(self._modules.values())).weight
        dtype = weight.dtype if weight.is_floating_point() else self._dtype
        if weight.device.type == "cpu":
            dtype = torch.float32
        # One product for all layers: `up` is block-diagonal, empty for layers without weights.
        down = torch.cat([w.down for w in own if w is not None], dim=1)
        up = torch.block_diag(*map(_up, own, self._modules.values()))
        self._weights[key] = LoraWeights(down.to(weight.device, dtype), up.to(weight.device, dtype))

    def drop(self, key: str) -> None:
        """Remove an adapter."""
        self._weights.pop(key, None)

    @property
    def empty(self) -> bool:
        return not self._weights

    def adapt(self, linear: Linear) -> Linear:
        """Return `linear` with the adapters applied."""

        def adapted(x: Tensor) -> Tensor:
            y = linear(x)
            self._add(x, y)
            return y

        return adapted

    def hook(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Apply the adapters in a forward hook, to an output of any number of dimensions."""
        x, y = inputs[0], output.reshape(-1, output.shape[-1])
        self._add(x.reshape(-1, x.shape[-1]), y)
        return y.view(output.shape)

    def _add(self, x: Tensor, y: Tensor) -> None:
        """Add the products of `x` (tokens, inputs) to `y` (tokens, outputs) in place."""
        for key, rows in self._rows:
            if (weights := self._weights.get(key)) is not None:
                own = x[rows]
                dtype = weights.down.dtype if len(own) <= _FEW_ROWS else own.dtype
                y[rows].add_(own.to(dtype) @ weights.down.to(dtype) @ weights.up.to(dtype))


class HookedAdapters:
    """Adapters on a model that runs its own forward pass, applied by forward hooks."""

    def __init__(self, model: Any, segments: AdapterSegments) -> None:
        self._segments = segments
        self._model = model
        self._layers: dict[str, tuple[LoraLinear, Any]] = {}

    def put(self, key: str, adapter: LoraAdapter) -> None:
        """Add an adapter."""
        for path in adapter:
            if path not in self._layers:
                module = self._model.get_submodule(path)
                is_head = module is self._model.get_output_embeddings()
                rows = self._segments.logits if is_head else self._segments.tokens
                layer = LoraLinear({path: module}, rows, self._model.dtype)
                self._layers[path] = layer, module.register_forward_hook(layer.hook)
            self._layers[path][0].put(key, adapter)

    def drop(self, key: str) -> None:
        """Remove an adapter, and the hooks of layers that no other adapter changes."""
        for path, (layer, hook) in list(self._layers.items()):
            layer.drop(key)
            if layer.empty:
                hook.remove()
                del self._layers[path]


def _up(weights: LoraWeights | None, module: Any) -> Tensor:
    return torch.empty(0, module.out_features) if weights is None else weights.up
