"""bitsandbytes' quantizers of Transformers, which here also take the experts of a mixture."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.utils.quantization_config import BitsAndBytesConfig, QuantizationMethod

from llmctl.engine.loading.quantizers.experts import (
    LinearsAndExperts,
    is_expert_weight,
    replace_experts,
)

_NF4, _INT8 = "llmctl-nf4", "llmctl-int8"
_LARGEST_NDIM = 3
"""Dimensions of an input that bitsandbytes' 8-bit product accepts."""


@register_quantization_config(_NF4)
class NF4Config(BitsAndBytesConfig):
    """NF4 with double quantisation.

    Args:
        compute_dtype: of the products.
        experts: whether the experts of a mixture are quantised too.
    """

    def __init__(
        self, compute_dtype: torch.dtype = torch.float32, *, experts: bool = True, **_: Any
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
        self.quant_method: Any = _NF4  # Transformers expects a member of its enumeration
        self.experts = experts


@register_quantization_config(_INT8)
class Int8Config(BitsAndBytesConfig):
    """LLM.int8().

    Args:
        experts: whether the experts of a mixture are quantised too.
    """

    def __init__(self, *, experts: bool = True, **_: Any) -> None:
        super().__init__(load_in_8bit=True)  # type: ignore[no-untyped-call]
        self.quant_method: Any = _INT8
        self.experts = experts


class _WithExperts:
    """What both quantizers add to those of Transformers."""

    quantization_config: Any

    def _new_layer(self, weight: Tensor) -> nn.Module:
        raise NotImplementedError

    def _process_model_before_weight_loading(self, model: Any, **given: Any) -> None:
        super()._process_model_before_weight_loading(model, **given)  # type: ignore[misc]
        if self.quantization_config.experts:
            replace_experts(model, self._new_layer)

    def _process_model_after_weight_loading(self, model: Any, **given: Any) -> Any:
        # PEFT and Trainer know bitsandbytes by this name.
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES
        return super()._process_model_after_weight_loading(model, **given)  # type: ignore[misc]

    def param_needs_quantization(self, model: Any, param_name: str, **given: Any) -> bool:
        needs: bool = is_expert_weight(model, param_name)
        return needs or super().param_needs_quantization(model, param_name, **given)  # type: ignore[misc]

    def get_quantize_ops(self) -> ConversionOps:
        return LinearsAndExperts(super().get_quantize_ops())  # type: ignore[misc]


@register_quantizer(_NF4)
class _NF4Quantizer(_WithExperts, Bnb4BitHfQuantizer):  # type: ignore[misc]
    def _new_layer(self, weight: Tensor) -> nn.Module:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit

        options: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
        dtype = self.quantization_config.bnb_4bit_compute_dtype
        outputs, inputs = weight.shape
        layer: Any = Linear4bit(  # type: ignore[no-untyped-call]
            inputs, outputs, bias=False, compute_dtype=dtype, device="meta", **options
        )
        quantised: Any = Params4bit(weight, requires_grad=False, **options)
        layer.weight = quantised.to(weight.device)
        return layer  # type: ignore[no-any-return]


@register_quantizer(_INT8)
class _Int8Quantizer(_WithExperts, Bnb8BitHfQuantizer):  # type: ignore[misc]
    def _new_layer(self, weight: Tensor) -> nn.Module:
        from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

        outputs, inputs = weight.shape
        options: dict[str, Any] = {"has_fp16_weights": False}
        layer: Any = Linear8bitLt(
            inputs, outputs, bias=False, threshold=6.0, device="meta", **options
        )
        quantised: Any = Int8Params(weight, requires_grad=False, **options)
        layer.weight = quantised.to(weight.device)
        return layer  # type: ignore[no-any-return]

    def _process_model_after_weight_loading(self, model: Any, **given: Any) -> Any:
        from bitsandbytes.nn.modules import Linear8bitLt

        for module in model.modules():
            if isinstance(module, Linear8bitLt):
                module.register_forward_pre_hook(_flatten_input)
                module.register_forward_hook(_restore_shape)
        return super()._process_model_after_weight_loading(model, **given)


def _flatten_input(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give the product three dimensions; latent attention has four."""
    (x,) = inputs
    module.input_shape = x.shape
    return (x if x.ndim <= _LARGEST_NDIM else x.reshape(1, -1, x.shape[-1]),)


def _restore_shape(module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return output.view(*module.input_shape[:-1], output.shape[-1])
