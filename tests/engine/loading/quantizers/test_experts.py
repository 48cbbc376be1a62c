"""The experts of a mixture, quantised layer by layer while weights are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmctl.engine.batching.forward.experts import QuantisedExperts
from llmctl.engine.batching.forward.int4 import Int4Linear
from llmctl.engine.batching.forward.packed_linear import Int8Linear
from llmctl.engine.loading.load import load_model
from llmctl.engine.loading.quantizers.packed import choose_packing
from llmctl.types import ModelSpec, Quant
from tests.compat.architectures import tiny_config
from tests.tiny import byte_tokenizer

TYPES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "nemotron_h")
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64}


@pytest.fixture(scope="module", params=TYPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / str(request.param)
    config = tiny_config(request.param)
    for name, size in SIZES.items():
        if hasattr(config, name):
            setattr(config, name, size)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def dequantised(experts: QuantisedExperts, name: str) -> torch.Tensor:
    """Return the matrices (experts, inputs, outputs) that the layers multiply by."""
    layers: Any = experts.layers[name]
    one = torch.eye(layers[0].in_features, dtype=torch.bfloat16)
    return torch.stack([layer(one) for layer in layers])


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["4bit", "8bit"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_quantised_mixture_computes_with_the_dequantised_weights(
    folder: Path, quant: Quant, packed: bool
) -> None:
    if packed and choose_packing(quant, "bfloat16", torch.device("cpu")) is None:
        pytest.skip("this processor or PyTorch does not support the layers")
    spec = ModelSpec(str(folder), quant=quant, dtype="bfloat16", device="cpu")
    loaded = load_model(spec, allow_packing=packed)
    replaced = {n: m for n, m in loaded.model.named_modules() if isinstance(m, QuantisedExperts)}
    assert replaced
    reference: Any = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), dtype=torch.bfloat16, experts_implementation="eager"
    )
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for path, experts in replaced.items():
        layers: Any = next(iter(experts.layers.values()))
        first = layers[0]
        assert isinstance(first, Int4Linear | Int8Linear) == packed
        own = reference.get_submodule(path)
        for name in experts.layers:
            matrices = dequantised(experts, name)
            exact = stock.get_parameter(f"{path}.{name}")
            if not own.is_transposed:
                matrices = matrices.transpose(1, 2)
            error = (matrices.float() - exact.float()).norm() / exact.float().norm()
            assert error < (0.02 if quant == "8bit" else 0.12)
            own.get_parameter(name).data = matrices.contiguous()
            if own.has_bias:
                own.get_parameter(f"{name}_bias").data = getattr(experts, f"{name}_bias").data
        torch.manual_seed(1)
        tokens = torch.randn(7, 64, dtype=torch.bfloat16)
        chosen = torch.randint(experts.num_experts, (7, 2))
        weights = torch.rand(7, 2, dtype=torch.bfloat16)
        with torch.inference_mode():
            expected, found = own(tokens, chosen, weights), experts(tokens, chosen, weights)
        distance = (found - expected).float().norm() / expected.float().norm()
        assert distance < (0.05 if quant == "8bit" else 0.03)
    # Scales of NF4 are not part of the footprint; padding of int4 is not part of the plan.
    assert loaded.plan.weights_bytes == pytest.approx(loaded.info.weight_bytes, rel=0.25)


@pytest.mark.slow
def test_latent_attention_loads_in_8_bits(tmp_path: Path) -> None:
    from tests.compat.architectures import build

    build("deepseek_v3", torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(str(tmp_path), quant="8bit", device="cpu"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        found, expected = loaded.model(ids).logits.float(), stock(ids).logits.float()
    assert (found - expected).norm() / expected.norm() < 0.3
