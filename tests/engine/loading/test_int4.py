"""Tests of 4-bit linear layers on a CPU, and of loading models into them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor

from llmctl.engine.batching.forward import int4
from llmctl.engine.batching.forward.int4 import GROUP_SIZE, Int4Linear
from llmctl.engine.batching.forward.linear import fuse
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.load import load_model
from llmctl.types import GenerationRequest, Message, ModelSpec, SamplingParams
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.skipif(
    not int4.int4_supported(), reason="this processor or PyTorch does not support the layers"
)

SHAPES = [(64, 32), (100, 64), (192, 576), (2100, 1056)]
"""Outputs and inputs: one block, a part of one, several, and more than are dequantised at once."""


def layer(weight: Tensor, bias: Tensor | None = None, **options: int) -> Int4Linear:
    quantised = Int4Linear(weight.shape[1], weight.shape[0], bias, **options)
    quantised.set_weight(weight)
    return quantised


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def dequantise(quantised: Int4Linear) -> Tensor:
    """Return the weights (outputs, inputs), by multiplication with unit vectors."""
    unit = torch.eye(quantised.in_features)
    # Twice, so that there are enough rows for the dequantised path.
    total = quantised.multiply(torch.cat((unit, unit)))[: len(unit)].T
    return total if quantised.bias is None else total - quantised.bias.unsqueeze(1)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_kernels_multiply_by_the_same_weights(
    outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs) + 0.3
    bias = torch.randn(outputs, dtype=dtype)
    # The largest shape is dequantised in several parts.
    quantised = layer(weight.to(dtype), bias, dequantised_weights=2**20)
    x = torch.randn(130, inputs).to(dtype)
    together = quantised(x)
    apart = torch.cat([quantised(part) for part in x.split(13)])
    assert together.dtype == apart.dtype == dtype
    assert relative_error(together.float(), apart.float()) < 0.006
    assert relative_error(together.float(), F.linear(x.float(), weight, bias.float())) < 0.09
    assert torch.equal(quantised(x.view(10, 13, inputs)), together.view(10, 13, outputs))


def test_the_error_of_random_weights_is_below_that_of_nf4() -> None:
    import bitsandbytes.functional as bnb

    torch.manual_seed(0)
    for draw in (torch.distributions.Normal(0.0, 0.02), torch.distributions.StudentT(5.0)):
        weight = draw.sample((256, 512))
        codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        nf4 = bnb.dequantize_4bit(codes, state)
        assert relative_error(dequantise(layer(weight)), weight) < 0.9 * relative_error(nf4, weight)


def test_weights_on_the_grid_are_exact() -> None:
    # As in a GGUF file in Q4_1, the source of the default model.
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (64, 8, GROUP_SIZE))
    codes[:, :, :2] = torch.tensor([0, 15])
    scale, least = torch.rand(64, 8, 1) + 0.1, torch.randn(64, 8, 1) - 0.8
    weight = (codes * scale + least).view(64, -1)
    assert relative_error(dequantise(layer(weight)), weight) < 0.005


def test_groups_of_equal_weights_are_exact() -> None:
    weight = torch.tensor([0.0, 0.5, -2.0]).repeat_interleave(GROUP_SIZE).repeat(64, 1)
    assert torch.equal(dequantise(layer(weight)), weight)


def test_layers_of_the_same_input_are_concatenated() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(outputs, 64) for outputs in (128, 64, 64)]
    for biases in ([None] * 3, [torch.randn(len(w)) for w in weights]):
        layers = [layer(w, b) for w, b in zip(weights, biases, strict=True)]
        x = torch.randn(5, 64)
        apart = torch.cat([one(x) for one in layers], dim=1)
        joined = fuse(layers, release=True)
        assert torch.equal(joined(x), apart)
        assert [one.weight.numel() for one in layers] == [0, 0, 0]
    # Layers with padding, or of which only some have a bias, are not concatenated.
    for odd in (layer(torch.randn(10, 64)), layer(torch.randn(64, 64), torch.randn(64))):
        pair = [layer(weights[0]), odd]
        apart = torch.cat([one(x) for one in pair], dim=1)
        assert torch.equal(fuse(pair, release=True)(x), apart)


def text_of(engine: HFRunner, adapter: str | None = None) -> str:
    request = GenerationRequest(
        (Message("user", "some text"),),
        sampling=SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True),
        adapter=adapter,
    )
    return engine.generate(request).choices[0].text


@pytest.mark.parametrize(
    ("family", "path", "options"),
    [
        ("qwen2", "fused", {}),  # biases on q, k and v
        ("gpt_neox", "batched", {}),  # biases everywhere, and a layer that is q, k and v at once
        ("mamba", "batched", {"state_size": 4}),
    ],
)
def test_a_model_is_loaded_into_quantised_layers(
    tmp_path: Path, family: str, path: str, options: dict[str, Any]
) -> None:
    folder = save_tiny_model(tmp_path / "m", model_type=family, hidden_size=64, **options)
    spec = ModelSpec(str(folder), dtype="float32", device="cpu", quant="4bit")
    model = load_model(spec).model
    layers = [m for m in model.modules() if isinstance(m, Int4Linear)]
    assert len(layers) > 3
    assert not isinstance(model.get_output_embeddings(), Int4Linear)
    assert not any(p.device.type == "meta" for p in (*model.parameters(), *model.buffers()))
    reference = load_model(ModelSpec(str(folder), dtype="float32", device="cpu")).model
    ids = torch.arange(2, 102).unsqueeze(0)
    with torch.inference_mode():
        for name, module in model.named_modules():
            if isinstance(module, Int4Linear):
                reference.get_submodule(name).weight.copy_(dequantise(module))
        assert relative_error(model(ids).logits, reference(ids).logits) < 0.03
    with HFRunner(spec) as engine:
        engine.load()
        assert engine.path == path
        assert len(text_of(engine)) > 0


def test_without_kernel_support_4bit_is_nf4(tmp_path: Path) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    folder = save_tiny_model(tmp_path / "m", hidden_size=64)
    loaded = load_model(ModelSpec(str(folder), device="cpu", quant="4bit"), allow_packing=False)
    assert isinstance(loaded.model.model.layers[0].mlp.up_proj, Linear4bit)
    assert any("saves memory, not time" in note for note in loaded.info.notes)
