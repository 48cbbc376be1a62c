"""The class of Transformers that loads a model for text."""

from typing import Any


def auto_model_class(config: Any) -> Any:
    """Return the `AutoModel...` class for a config.

    Some vision-language models are only registered as such (Qwen3-VL, Mistral 3, InternVL). Without
    images they are language models; their names of weights are those of the whole checkpoint.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    kind = getattr(config, "model_type", None)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    only_vision = (
        kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return AutoModelForImageTextToText if only_vision and not remote else AutoModelForCausalLM
