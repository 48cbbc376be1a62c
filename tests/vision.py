"""Tiny vision-language models, whose text part is served and trained."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.compat.architectures import tiny_values

_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_heads": 4,
    "head_dim": 8,
    "patch_size": 14,
    "image_size": 28,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "num_position_embeddings": 16,
}
_TOKENS = {"image_token_id": 5, "image_token_index": 5, "video_token_id": 6, "pad_token_id": 0}
_TOKENS |= {"vision_start_token_id": 7, "vision_end_token_id": 8}


def build_vision_model(model_type: str, **text: Any) -> Any:
    """Return a tiny random model; `text` changes its text configuration."""
    default = AutoConfig.for_model(model_type)
    kind = default.vision_config.model_type
    vision = {n: v for n, v in _VISION.items() if hasattr(default.vision_config, n)}
    config = AutoConfig.for_model(
        model_type,
        text_config=tiny_values(default.text_config)
        | {"model_type": default.text_config.model_type}
        | text,
        vision_config=vision | {"model_type": kind},
        **{name: value for name, value in _TOKENS.items() if hasattr(default, name)},
    )
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model
