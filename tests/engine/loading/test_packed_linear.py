"""Tests of 16-bit and 8-bit linear layers on a CPU, and of loading models into them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn

from llmctl.engine.batching.forward.linear import fuse
from llmctl.engine.batching.forward.packed_linear import Float16Linear, Int8Linear, fbgemm_supported
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.load import load_model
from llmctl.engine.loading.quantizers.packed import Float16Embedding
from llmctl.types import GenerationRequest, Message, ModelSpec, Quant, SamplingParams
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.skipif(
    not fbgemm_supported(), reason="this processor or PyTorch has no FBGEMM"
)
KINDS = {Float16Linear: 1e-3, Int8Linear: 0.02}
"""Layers with the largest relative error of a product of normal numbers."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (100, 65), (192, 576)])
def test_products_are_those_of_the_weights(
    kind: type[Float16Linear | Int8Linear], dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs, dtype=dtype)
    x = torch.randn(3, 13, inputs).to(dtype)
    product = kind.of(weight, bias)(x)
    assert product.dtype == dtype
    expected = F.linear(x.float(), weight, bias.float())
    limit = KINDS[kind] + (0.005 if dtype == torch.bfloat16 else 0)
    assert relative_error(product.float(), expected) < limit


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind: type[Float16Linear | Int8Linear]) -> None:
    torch.manual_seed(0)
    layer = kind.of(torch.randn(96, 64))
    rows = torch.randn(20, 64)
    alone = layer(rows)
    # With one scale for the whole batch the small rows would be rounded to nothing.
    beside_large = layer(torch.cat((rows, 1000 * rows)))[:20]
    torch.testing.assert_close(beside_large, alone, atol=1e-4, rtol=1e-5)


def test_products_of_the_largest_values_do_not_overflow() -> None:
    layer = Int8Linear.of(torch.ones(32, 256))
    assert relative_error(layer(torch.ones(4, 256)), torch.full((4, 32), 256.0)) < 1e-3
    assert relative_error(layer(-torch.ones(4, 256)), torch.full((4, 32), -256.0)) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_one_input_are_fused(kind: type[Float16Linear | Int8Linear]) -> None:
    torch.manual_seed(0)
    layers = [kind.of(torch.randn(size, 64), torch.randn(size)) for size in (32, 48, 7)]
    x = torch.randn(5, 64)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    fused = fuse(layers, release=True)
    torch.testing.assert_close(fused(x), expected, atol=1e-4, rtol=1e-5)
    assert sum(layer.weight_bytes for layer in layers) == 0


@pytest.mark.parametrize("large", [7e4, float("inf")])
def test_a_matrix_beyond_the_range_of_float16_stays_in_float32(large: float) -> None:
    weight = torch.randn(8, 16)
    weight[3, 5] = large
    before = weight.clone()
    layer = Float16Linear.of(weight)
    assert torch.equal(weight, before)  # FBGEMM would clamp it
    x = torch.rand(2, 16)
    assert torch.equal(layer(x), F.linear(x, weight))
    assert layer.weight_bytes == weight.nbytes
    other = Float16Linear.of(torch.randn(8, 16))
    assert torch.equal(fuse([layer, other])(x)[:, 3], F.linear(x, weight)[:, 3])


def test_weights_of_a_bfloat16_checkpoint_are_exact_in_float16() -> None:
    weight = (torch.randn(64, 64) * 0.02).bfloat16().float()
    weight[weight.abs() < 6.2e-5] = 0
    assert torch.equal(Float16Linear.of(weight)(torch.eye(64)).T, weight)


MODELS = [("llama", True), ("llama", False), ("gemma3_text", True), ("qwen3_moe", False)]


@pytest.mark.parametrize(("model_type", "tied"), MODELS)
def test_a_model_in_float16_has_the_logits_of_float32(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    folder = save_tiny_model(
        tmp_path / "model", model_type=model_type, tie_word_embeddings=tied, vocab_size=320
    )
    ids = torch.tensor([[5, 17, 200, 3, 7, 90]])
    logits, sizes = [], []
    for dtype in ("float32", "float16"):
        loaded = load_model(ModelSpec(str(folder), device="cpu", dtype=dtype))
        assert loaded.info.dtype == "float32"
        with torch.inference_mode():
            logits.append(loaded.model(input_ids=ids).logits)
        sizes.append(loaded.info.weight_bytes)
        layers = [m for m in loaded.model.modules() if type(m) is nn.Linear]
        assert bool(layers) == (dtype == "float32")
    assert isinstance(loaded.model.get_input_embeddings(), Float16Embedding)
    assert relative_error(logits[1], logits[0]) < 2e-3
    if model_type == "llama":
        assert sizes[1] < (0.7 if tied else 0.55) * sizes[0]


@pytest.mark.parametrize("quant", ["none", "8bit"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_generates_with_packed_weights(tmp_path: Path, quant: Quant, tied: bool) -> None:
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    requests = [
        GenerationRequest(
            (Message("user", text),), sampling=SamplingParams(temperature=0, max_new_tokens=8)
        )
        for text in ("a", "hello there", "x" * 40)
    ]
    with HFRunner(ModelSpec(str(folder), device="cpu", dtype="float16", quant=quant)) as engine:
        engine.load()
        assert engine.info().execution_path == "fused"
        streams = [engine.submit(request) for request in requests]
        together = ["".join(chunk.text for chunk in stream) for stream in streams]
        alone = [engine.generate(request).choices[0].text for request in requests]
    assert together == alone
