"""The Transformers quantizer that loads weights into packed layers for CPUs, a matrix at a time.

The model is never in memory as a whole in the type of its file.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmctl.engine.batching.forward.int4 import GROUP_SIZE, Int4Linear, int4_supported
from llmctl.engine.batching.forward.packed_linear import Float16Linear, Int8Linear, fbgemm_supported
from llmctl.engine.loading.quantizers.experts import (
    LinearsAndExperts,
    is_expert_weight,
    replace_experts,
)
from llmctl.engine.loading.tensor_names import is_other_part
from llmctl.engine.memory.hardware import stores_float16
from llmctl.types import DType, Quant

Packing = Literal["int4", "int8", "float16"]
"""Format of the weights of packed layers."""
_NAME = "llmctl-packed"
_LAYERS: dict[Packing, type[Int4Linear | Int8Linear | Float16Linear]] = {
    "int4": Int4Linear,
    "int8": Int8Linear,
    "float16": Float16Linear,
}


def choose_packing(quant: Quant, dtype: DType, device: torch.device) -> Packing | None:
    """Return the format in which weights are packed, `None` for those of other libraries.

    Args:
        quant: the requested quantisation.
        dtype: the requested type.
        device: of the weights.
    """
    if device.type != "cpu":
        return None
    if quant == "4bit":
        return "int4" if int4_supported() else None
    if quant == "8bit":
        return "int8" if fbgemm_supported() else None
    return "float16" if stores_float16(dtype, device) else None


@register_quantization_config(_NAME)
class PackingConfig(QuantizationConfigMixin):
    """Selects this quantizer in `from_pretrained`."""

    def __init__(self, packing: Packing = "float16", **_: Any) -> None:
        self.quant_method: Any = _NAME  # Transformers expects a member of its enumeration
        self.packing = packing


class _Pack(ConversionOps):
    def convert(self, input_dict: dict[str, Any], *_: Any, **given: Any) -> dict[str, list[Tensor]]:
        """Pack one weight into its layer; return no tensor for Transformers to assign."""
        for name, tensors in input_dict.items():
            layer, _name = get_module_from_name(given["model"], name)
            layer.set_weight(tensors[0] if isinstance(tensors, list) else tensors)
            # Marks the module and the tensor as initialised.
            layer._is_hf_initialized = layer.weight._is_hf_initialized = True
            given["missing_keys"].discard(name)
        return {}


@register_quantizer(_NAME)
class _PackedQuantizer(HfQuantizer):
    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config: Any = self.quantization_config
        packing: Packing = config.packing
        skipped = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        for path, module in list(model.named_modules()):
            if (
                type(module) is nn.Linear
                and not is_other_part(path)
                and should_convert_module(path, skipped)
                and (packing != "int4" or module.in_features % GROUP_SIZE == 0)
            ):
                model.set_submodule(path, _empty(module, _LAYERS[packing]))
        replace_experts(model, _LAYERS[packing].of, GROUP_SIZE if packing == "int4" else 1)

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        is_linear = isinstance(module, tuple(_LAYERS.values())) and name == "weight"
        return is_linear or is_expert_weight(model, param_name)

    def get_quantize_ops(self) -> ConversionOps:
        return LinearsAndExperts(_Pack())

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _empty(module: nn.Linear, kind: type[Any]) -> Any:
    """Return the empty layer that replaces `module`, whose weight has not been read."""
    layer = kind(module.in_features, module.out_features)
    shape, dtype = module.weight.shape, module.weight.dtype
    layer.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
    layer.bias = module.bias
    return layer


class Float16Embedding(nn.Module):
    """An `nn.Embedding` with float16 weights and float32 outputs.

    Attributes:
        weight: (vocab, hidden), a buffer, so that the type of the model's parameters is float32.
        is_head: whether the output layer has the same weights.
    """

    weight: Tensor

    def __init__(self, embedding: Any, *, is_head: bool) -> None:
        super().__init__()
        self.register_buffer("weight", embedding.weight.detach().half(), persistent=False)
        # Gemma multiplies its embeddings by a constant.
        self.embed_scale: Any = getattr(embedding, "embed_scale", None)
        self.padding_idx = embedding.padding_idx
        self.is_head = is_head

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings (..., hidden) of `ids` (...)."""
        rows = F.embedding(ids, self.weight).float()
        return rows if self.embed_scale is None else rows * self.embed_scale


def store_ends_in_float16(model: Any) -> None:
    """Store embeddings and head of a float32 model in float16, where that changes nothing else.

    Embeddings of classes that compute more than Gemma's stay in float32.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_plain_head = type(head) is nn.Linear
    is_tied = is_plain_head and head.weight is embedding.weight
    if is_plain_head:
        model.set_output_embeddings(Float16Linear.of(head.weight, head.bias))
    if not isinstance(embedding, nn.Embedding) or embedding.weight.abs().amax() > 65504:
        return
    small = Float16Embedding(embedding, is_head=is_tied)
    ids = torch.arange(min(embedding.num_embeddings, 64))
    with torch.inference_mode():
        if torch.allclose(small(ids), embedding(ids), rtol=2e-3, atol=1e-6):
            model.set_input_embeddings(small)


def packed_bytes(model: Any) -> int:
    """Return the memory of the layers whose weights PyTorch does not count as tensors."""
    return sum(
        module.weight_bytes
        for module in model.modules()
        if isinstance(module, Float16Linear | Int8Linear)
    )
