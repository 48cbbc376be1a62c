"""Reading of a model's weights, with a check that the files have exactly those of the model."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.engine.models.weight_files import model_entries
from llmctl.errors import ModelLoadError
from llmctl.types import ModelSpec, Quant

_PREFIXES = ("_orig_mod.", "base_model.model.", "module.")
"""What `torch.compile`, PEFT and data parallelism put before the names of tensors."""
_IGNORED = re.compile(
    r"rotary_emb\.|\.inv_freq$|masked_bias$|attn\.bias$|attention\.bias$|^mtp\.|\.mtp\."
    r"|vision|visual|multi_modal|mm_projector|image_newline|audio|speech|embed_vision|vqmodel"
    r"|[kvq]_scale$|(?:input|output)_scale$|num_batches_tracked$"
)
"""Tensors that a causal language model does not need: tables that it computes, layers for
multi-token prediction, the other parts of multimodal models, scales of quantised caches."""
_SHOWN = 3
_HINT = "the files are incomplete or of another model: `llmctl models rm` and `pull` download anew"


def read_weights(
    spec: ModelSpec,
    resolved: ResolvedModel,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None = None,
    *,
    int4: bool = False,
) -> Any:
    """Read the weights of a full model.

    Args:
        spec: the model and its quantisation.
        resolved: where it is.
        config: of Transformers.
        device: to load to.
        dtype: of weights that are not quantised.
        attention: Transformers' name of an implementation.
        int4: whether 4bit is `Int4Linear`, which has no gradients, instead of NF4.

    Raises:
        ModelLoadError: the files lack tensors, or have others or of other shapes; or a package for
            their quantisation is missing.
    """
    from transformers import GgufConfig

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if (gguf_file := resolved.gguf_file) is not None:
        options |= {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"config": config, "use_safetensors": None if spec.allow_pickle else True}
        if (quantisation := _quantisation(spec.quant, dtype, int4=int4)) is not None:
            options["quantization_config"] = quantisation
        if (prefix := _prefix(resolved)) is not None:
            options["key_mapping"] = {f"^{re.escape(prefix)}": ""}
    try:
        loaded: Any = auto_model_class(config).from_pretrained(
            resolved.path,
            dtype=dtype,
            device_map={"": device},
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with all others
            **options,
        )
    except ImportError as error:
        if (method := _quantisation_method(config)) is None:
            raise
        raise ModelLoadError(
            f"{resolved.model_id} is quantised with {method}: {str(error).strip().splitlines()[0]}",
            hint=_OTHER_FORMATS,
        ) from error
    model, report = loaded
    _check_tensors(model, report, resolved, is_gguf=gguf_file is not None)
    return model


_OTHER_FORMATS = (
    "install that package, or take the unquantised safetensors with --quant 4bit, or a GGUF file"
)


def check_quantisation_method(config: Any, model_id: str) -> None:
    """Check that Transformers knows how the weights are quantised; it would ignore it otherwise.

    Raises:
        ModelLoadError: it does not.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = _quantisation_method(config)
    known = {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}
    if method is not None and method not in known:
        raise ModelLoadError(
            f"{model_id} is quantised with {method!r}, which Transformers does not read",
            hint="take its unquantised safetensors with --quant 4bit or 8bit, or a GGUF file",
        )


def _quantisation_method(config: Any) -> str | None:
    own = getattr(config, "quantization_config", None)
    if own is None:
        return None
    if isinstance(own, dict):
        method = own.get("quant_method")
    else:
        method = getattr(own, "quant_method", None)
    if method is None:  # bitsandbytes did not write it at first
        return "bitsandbytes"
    return str(getattr(method, "value", method))


def _quantisation(quant: Quant, compute_dtype: torch.dtype, *, int4: bool) -> Any:
    """Return the config of `Int4Linear`, of NF4 with double quantisation, or of LLM.int8()."""
    if quant == "none":
        return None
    if quant == "4bit" and int4:
        from llmctl.engine.loading.int4_quantizer import Int4Config

        return Int4Config()
    from transformers import BitsAndBytesConfig

    if quant == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _prefix(resolved: ResolvedModel) -> str | None:
    """Return the known prefix that all tensors of the files have, if any."""
    try:
        names = list(model_entries(resolved.path))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # reading the weights reports what is wrong
    for prefix in _PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return None


def _check_tensors(model: Any, report: Any, resolved: ResolvedModel, *, is_gguf: bool) -> None:
    """Raise `ModelLoadError` if tensors are missing, unknown or of another shape."""
    mismatched = [
        f"{name} {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in report["mismatched_keys"]
    ]
    unexpected = [] if is_gguf else _unknown(report["unexpected_keys"], model)
    problems = [
        ("lack", sorted(report["missing_keys"])),
        ("have tensors of another shape:", mismatched),
        ("have tensors that the model does not:", unexpected),
    ]
    parts = [f"{what} {_some(names)}" for what, names in problems if names]
    if parts:
        raise ModelLoadError(f"the weights of {resolved.model_id} {', '.join(parts)}", hint=_HINT)


def _unknown(names: Iterable[str], model: Any) -> list[str]:
    """Return the tensors that may matter, and that the model does not have."""
    text = model.config.get_text_config(decoder=True)
    layers = getattr(text, "num_hidden_layers", None)
    found = []
    for name in sorted(names):
        number = re.search(r"\.layers\.(\d+)\.", name)
        # Layers after the last one are for multi-token prediction (DeepSeek-V3, section 2.2).
        is_extra = number is not None and layers is not None and int(number[1]) >= layers
        if not is_extra and not _IGNORED.search(name):
            found.append(name)
    return found


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
