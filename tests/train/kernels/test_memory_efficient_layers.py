"""Memory-efficient layers have the gradients of the layers they replace."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.train.kernels.memory_efficient_layers import use_memory_efficient_layers
from tests.tiny import save_tiny_model
from tests.train.kernels.test_lora import adapted, assert_same


def replaced(model: Any) -> set[str]:
    return {type(m).__name__ for m in model.modules() if "forward" in vars(m)}


def randomize_norms(model: Any) -> Any:
    """Set random norm weights: those of a new model are all ones, which hides errors."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_norms_and_gated_layers_have_the_same_gradients(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny_model(tmp_path, model_type=model_type)
    model = randomize_norms(adapted(folder))
    use_memory_efficient_layers(model)
    kinds = replaced(model)
    assert any(kind.endswith("RMSNorm") for kind in kinds)
    assert any(kind.endswith("MLP") for kind in kinds)
    assert_same(model, randomize_norms(adapted(folder)))


def test_a_layer_with_a_different_formula_is_not_replaced(tmp_path: Path) -> None:
    model = randomize_norms(adapted(save_tiny_model(tmp_path, model_type="gemma")))
    use_memory_efficient_layers(model)  # its norms scale by 1 + weight, and its gate is not SiLU
    assert replaced(model) == set()


def test_a_trainable_norm_is_not_replaced(tiny_folder: Path) -> None:
    model = adapted(tiny_folder).requires_grad_(True)
    use_memory_efficient_layers(model)
    assert not any(kind.endswith("RMSNorm") for kind in replaced(model))
