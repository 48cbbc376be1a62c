"""Tiny vision-language models, whose text part is served and trained."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from tests.compat.architectures import tiny_config


def build_vision_model(model_type: str, **text: Any) -> Any:
    """Return a tiny random model; `text` changes its text configuration."""
    config = tiny_config(model_type, **text)
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model
