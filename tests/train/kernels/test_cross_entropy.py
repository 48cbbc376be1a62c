"""The chunked loss and its gradients are those of the model's own loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.train.kernels.cross_entropy import ChunkedCrossEntropy, matches_model_loss, model_loss
from tests.tiny import save_tiny_model


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).train()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (3, 40))
    labels = ids.clone()
    labels[:, :13] = -100
    labels[1, 25:] = -100
    labels[2, 20:30] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen2", {}), ("phi", {})],
)
@pytest.mark.parametrize("chunk", [2**24, 259 * 5])
def test_loss_and_gradients_equal_the_models_own(
    tmp_path: Path,
    model_type: str,
    options: dict[str, Any],
    chunk: int,
) -> None:
    model = load(save_tiny_model(tmp_path, model_type=model_type, **options))
    loss = ChunkedCrossEntropy.for_model(model, logits_per_chunk=chunk)
    assert loss is not None
    own, expected = loss(model, batch()), model_loss(model, batch())
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, own), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_model_returns_logits_again_afterwards(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path))
    before = model(**batch()).logits
    loss = ChunkedCrossEntropy.for_model(model)
    assert loss is not None
    loss(model, batch())
    assert torch.equal(model(**batch()).logits, before)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("gemma2", {"final_logit_softcapping": 1.0}), ("granite", {"logits_scaling": 3.0})],
)
def test_a_model_that_transforms_its_logits_is_detected(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    model = load(save_tiny_model(tmp_path, model_type=model_type, **options))
    loss = ChunkedCrossEntropy.for_model(model)
    assert loss is None or not matches_model_loss(model, loss, batch())


def test_a_batch_without_targets_has_a_loss_of_zero(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path))
    chunked = ChunkedCrossEntropy.for_model(model)
    assert chunked is not None
    inputs = batch()
    inputs["labels"][:] = -100
    loss = chunked(model, inputs)
    loss.backward()
    assert loss.item() == 0
