"""Two steps of fine-tuning on tiny models of many types, and the adapter when it is served."""

from pathlib import Path

import pytest

from llmctl.config import TrainConfig
from llmctl.train.setup.trainable_parameters import make_trainable
from tests.compat.architectures import build
from tests.compat.finetuning import peft_logprobs, served_logprobs, train

TYPES = {
    "qwen3_moe": "routers and fused experts",
    "gpt_oss": "sinks, experts with biases",
    "granitemoehybrid": "recurrent layers and experts",
    "deepseek_v3": "latent attention",
    "falcon_h1": "layers that PEFT refuses",
    "jamba": "Mamba 1 and experts",
    "gemma3n_text": "outputs of layers that are changed in place",
    "kimi_linear": "delta attention",
}


VISION = ("qwen3_vl", "mistral3")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*TYPES, *VISION])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_trained_and_served_with_the_numbers_of_peft(
    model_type: str, dtype: str, tmp_path: Path
) -> None:
    assert len(train(model_type, dtype, tmp_path)) == 2
    before, after = peft_logprobs(tmp_path)
    assert float((after - before).abs().max()) > 1e-3
    served = served_logprobs(tmp_path / "base", tmp_path / "adapter")
    assert served == pytest.approx(after, abs=1e-3)


@pytest.mark.parametrize("model_type", ["qwen3_vl", "llava"])
def test_only_layers_that_text_passes_are_trained(model_type: str) -> None:
    config = TrainConfig(data=("",), output="")
    model = make_trainable(build(model_type).requires_grad_(False), config, None)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("language_model" in name for name in trained)


def test_the_router_and_the_experts_of_a_mixture_are_left_out_by_default() -> None:
    from llmctl.train.setup.trainable_parameters import default_target_modules

    assert default_target_modules(build("llama")) == ("all-linear",)
    assert default_target_modules(build("mixtral")) == ("k_proj", "o_proj", "q_proj", "v_proj")
    mamba = default_target_modules(build("falcon_mamba"))
    assert {"in_proj", "x_proj"} <= set(mamba)
    assert "out_proj" not in mamba
