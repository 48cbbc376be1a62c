"""Quantisation of the experts of a mixture while weights are read, one layer at a time."""

from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import get_module_from_name

from llmctl.engine.batching.forward.experts import LinearFactory, QuantisedExperts


def replace_experts(model: Any, quantise: LinearFactory, multiple: int = 1) -> None:
    """Put `QuantisedExperts` in the place of the experts of all layers."""
    for path, module in list(model.named_modules()):
        if QuantisedExperts.replaces(module, multiple):
            model.set_submodule(path, QuantisedExperts(module, quantise))


def is_expert_weight(model: Any, path: str) -> bool:
    """Whether a tensor has matrices of experts that are to be quantised."""
    module, name = get_module_from_name(model, path)
    return isinstance(module, QuantisedExperts) and not name.endswith("_bias")


class LinearsAndExperts(ConversionOps):
    """Quantises linear layers by another operation, and experts into their layers."""

    def __init__(self, linears: ConversionOps) -> None:
        self._linears = linears

    def convert(self, input_dict: dict[str, Any], *args: Any, **given: Any) -> dict[str, Any]:
        """Return no tensor of experts: Transformers would assign it."""
        converted: dict[str, Any] = {}
        for path, tensors in input_dict.items():
            if not is_expert_weight(given["model"], path):
                converted |= self._linears.convert({path: tensors}, *args, **given)
                continue
            experts, name = get_module_from_name(given["model"], path)
            weight: Tensor = tensors[0] if isinstance(tensors, list) else tensors
            experts.set_weight(name, weight)
            # Marks the module and its tensors as initialised.
            experts._is_hf_initialized = True
            for layer in experts.layers[name]:
                layer._is_hf_initialized = layer.weight._is_hf_initialized = True
            given["missing_keys"].discard(path)
        return converted
