"""The Transformers quantizer that loads weights into `Int4Linear` layers, one matrix at a time.

The unquantised model is never in memory as a whole.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmctl.engine.batching.forward.int4 import GROUP_SIZE, Int4Linear
from llmctl.engine.loading.expert_quantizer import (
    LinearsAndExperts,
    is_expert_weight,
    replace_experts,
)

_NAME = "llmctl-int4"


@register_quantization_config(_NAME)
class Int4Config(QuantizationConfigMixin):
    """Selects this quantizer in `from_pretrained`."""

    def __init__(self, **_: Any) -> None:
        self.quant_method: Any = _NAME  # Transformers expects a member of its enumeration


class _Quantise(ConversionOps):
    def convert(self, input_dict: dict[str, Any], *_: Any, **given: Any) -> dict[str, list[Tensor]]:
        """Quantise one weight into its layer; return no tensor for Transformers to assign."""
        for name, tensors in input_dict.items():
            layer, _name = get_module_from_name(given["model"], name)
            layer.quantise(tensors[0] if isinstance(tensors, list) else tensors)
            # Marks the module and the tensor as initialised.
            layer._is_hf_initialized = layer.weight._is_hf_initialized = True
            given["missing_keys"].discard(name)
        return {}


@register_quantizer(_NAME)
class _Int4Quantizer(HfQuantizer):
    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        skipped = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        for path, module in list(model.named_modules()):
            if (
                type(module) is nn.Linear
                and should_convert_module(path, skipped)
                and module.in_features % GROUP_SIZE == 0
            ):
                model.set_submodule(path, _empty(module))
        replace_experts(model, _quantised, GROUP_SIZE)

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        is_linear = isinstance(module, Int4Linear) and name == "weight"
        return is_linear or is_expert_weight(model, param_name)

    def get_quantize_ops(self) -> ConversionOps:
        return LinearsAndExperts(_Quantise())

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _quantised(weight: Tensor) -> Int4Linear:
    layer = Int4Linear(weight.shape[1], weight.shape[0])
    layer.quantise(weight)
    return layer


def _empty(module: nn.Linear) -> Int4Linear:
    """Return the empty layer that replaces `module`, whose weight has not been read."""
    layer = Int4Linear(module.in_features, module.out_features)
    shape, dtype = module.weight.shape, module.weight.dtype
    layer.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
    layer.bias = module.bias
    return layer
