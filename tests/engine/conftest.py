"""Models that several tests of the engine share."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def reference_smollm() -> tuple[Any, Any]:
    """The default model in float32 and its tokenizer, as Transformers loads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmctl.engine.models.resolve import resolve_model

    folder = resolve_model("smollm2-135m").path
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
