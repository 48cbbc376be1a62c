"""The class of Transformers that loads a model for text, and the part before the head."""

from typing import Any

_ALWAYS_WHOLE = ("mllama", "emu3")
"""Types whose causal class reads neither the configuration nor the names of a checkpoint."""


def auto_model_class(config: Any) -> Any:
    """Return the `AutoModel...` class for a config.

    Some vision-language models are only registered as such (Qwen3-VL, Mistral 3, InternVL). Without
    images they are language models; their names of weights are those of the whole checkpoint.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    kind = getattr(config, "model_type", None)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    only_vision = kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and (
        kind in _ALWAYS_WHOLE or kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return AutoModelForImageTextToText if only_vision and not remote else AutoModelForCausalLM


def model_body(model: Any) -> Any:
    """Return the part of a causal language model that computes the states before the head."""
    body = model.base_model
    return text_decoder(model) if body is model else body


def text_decoder(model: Any) -> Any:
    """Return the layers that text passes, without the head and the parts for images and sound."""
    decoder = model.get_decoder()
    # Llama 4 returns the causal model, whose attribute has another name than its class declares.
    while decoder.get_output_embeddings() is not None and hasattr(decoder, "model"):
        decoder = decoder.model
    return decoder
