"""LoRA adapters in memory: what each adds to which linear layer, for its own rows of a step.

Rows of one adapter lie next to each other in a step, so that each adapter is two small products
over a slice: y += x A B with the scaling in B (Hu et al. 2021).
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmctl.engine.batching.forward.linear import Linear

_FEW_ROWS = 8
"""Up to so many rows of one adapter a CPU is faster in float32: matrices as small as these take
less time than a bfloat16 product needs to begin."""


class LoraWeights(NamedTuple):
    """What an adapter adds to one linear layer."""

    down: Tensor
    """(inputs, rank)."""
    up: Tensor
    """(rank, outputs), scaled."""


LoraAdapter = Mapping[str, LoraWeights]
"""By the path of the linear module within the model."""

AdapterSlices = list[tuple[str, slice]]
"""Which rows are under which adapter. Filled anew for every step, in place."""


class AdapterSegments:
    """Which rows of the running step are under which adapter; of the others nothing is said."""

    def __init__(self) -> None:
        self.tokens: AdapterSlices = []
        self.wanted: AdapterSlices = []
        """Of the tokens whose logits are wanted, which are all that the head sees."""

    def note(self, segments: Iterable[tuple[str | None, int, int]]) -> None:
        """Note a packed step: adapter, tokens and wanted logits of each of its rows, in order."""
        self.tokens.clear()
        self.wanted.clear()
        token = logit = 0
        for key, same in groupby(segments, lambda segment: segment[0]):
            counts = [(tokens, logits) for _, tokens, logits in same]
            tokens, logits = (sum(count) for count in zip(*counts, strict=True))
            if key is not None:
                self.tokens.append((key, slice(token, token + tokens)))
                self.wanted.append((key, slice(logit, logit + logits)))
            token, logit = token + tokens, logit + logits

    def all_under(self, key: str | None) -> None:
        """Note a step of one adapter alone."""
        self.tokens[:] = self.wanted[:] = [] if key is None else [(key, slice(None))]


class LoraLinear:
    """One or several linear layers of the same input, and what adapters add to their outputs.

    Args:
        modules: by path; their outputs lie side by side.
        rows: of the step, where this layer sees them.
        dtype: of the deltas, where the layers' own weights are quantised.
    """

    def __init__(self, modules: Mapping[str, Any], rows: AdapterSlices, dtype: torch.dtype) -> None:
        self._modules = modules
        self._rows = rows
        self._dtype = dtype
        self._deltas: dict[str, LoraWeights] = {}

    def put(self, key: str, adapter: LoraAdapter) -> None:
        """Hold what an adapter adds here, if anything."""
        own = [adapter.get(path) for path in self._modules]
        if not any(own):
            return
        weight: Tensor = next(iter(self._modules.values())).weight
        dtype = weight.dtype if weight.is_floating_point() else self._dtype
        if weight.device.type == "cpu":
            dtype = torch.float32
        # One product for all parts: `up` is block-diagonal, with no rows for parts left alone.
        down = torch.cat([d.down for d in own if d is not None], dim=1)
        up = torch.block_diag(*map(_up, own, self._modules.values()))
        self._deltas[key] = LoraWeights(down.to(weight.device, dtype), up.to(weight.device, dtype))

    def drop(self, key: str) -> None:
        """Forget an adapter."""
        self._deltas.pop(key, None)

    @property
    def empty(self) -> bool:
        return not self._deltas

    def adapt(self, linear: Linear) -> Linear:
        """Return `linear` with what the adapters add."""

        def adapted(x: Tensor) -> Tensor:
            y = linear(x)
            self._add(x, y)
            return y

        return adapted

    def hook(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add to the output of a module, as its forward hook; any number of dimensions."""
        x, y = inputs[0], output.reshape(-1, output.shape[-1])
        self._add(x.reshape(-1, x.shape[-1]), y)
        return y.view(output.shape)

    def _add(self, x: Tensor, y: Tensor) -> None:
        """Add to `y` (tokens, outputs), in place, what belongs to `x` (tokens, inputs)."""
        for key, rows in self._rows:
            if (delta := self._deltas.get(key)) is not None:
                own = x[rows]
                dtype = delta.down.dtype if len(own) <= _FEW_ROWS else own.dtype
                y[rows].add_(own.to(dtype) @ delta.down.to(dtype) @ delta.up.to(dtype))


class HookedAdapters:
    """Adapters on a model that runs its own forward pass, by hooks on the layers they change."""

    def __init__(self, model: Any, rows: AdapterSegments) -> None:
        self._rows = rows
        self._model = model
        self._sites: dict[str, tuple[LoraLinear, Any]] = {}

    def put(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter."""
        for path in adapter:
            if path not in self._sites:
                module = self._model.get_submodule(path)
                is_head = module is self._model.get_output_embeddings()
                rows = self._rows.wanted if is_head else self._rows.tokens
                site = LoraLinear({path: module}, rows, self._model.dtype)
                self._sites[path] = site, module.register_forward_hook(site.hook)
            self._sites[path][0].put(key, adapter)

    def drop(self, key: str) -> None:
        """Forget an adapter; layers that no other changes are as they were."""
        for path, (site, hook) in list(self._sites.items()):
            site.drop(key)
            if site.empty:
                hook.remove()
                del self._sites[path]


def _up(delta: LoraWeights | None, module: Any) -> Tensor:
    return torch.empty(0, module.out_features) if delta is None else delta.up
