"""Two steps of fine-tuning on tiny models of many types, and the adapter when it is served."""

from pathlib import Path

import pytest

from llmctl.config import TrainConfig
from llmctl.errors import ConfigError
from llmctl.train.setup.target_modules import default_target_modules, describe_mixture
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


def test_llama_4_is_trained_in_its_attention_and_shared_experts() -> None:
    config = TrainConfig(data=("",), output="")
    model = make_trainable(build("llama4_text").requires_grad_(False), config, None)
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in trained} >= {"q_proj", "o_proj", "up_proj"}


@pytest.mark.parametrize("model_type", ["qwen3_vl", "llava"])
def test_only_layers_that_text_passes_are_trained(model_type: str) -> None:
    config = TrainConfig(data=("",), output="")
    model = make_trainable(build(model_type).requires_grad_(False), config, None)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("language_model" in name for name in trained)


def test_the_router_and_the_experts_of_a_mixture_are_left_out_by_default() -> None:
    assert default_target_modules(build("llama")) == ("all-linear",)
    assert default_target_modules(build("mixtral")) == ("k_proj", "o_proj", "q_proj", "v_proj")
    # PEFT would adapt the experts for the names of the dense layers.
    latent = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj")
    assert default_target_modules(build("deepseek_v3")) == latent
    mamba = default_target_modules(build("falcon_mamba"))
    assert {"in_proj", "x_proj"} <= set(mamba)
    assert "out_proj" not in mamba


@pytest.mark.parametrize(
    ("model_type", "targets", "note"),
    [
        ("mixtral", (), "trained in k_proj, o_proj, q_proj, v_proj; the routers and the routed"),
        ("granitemoehybrid", (), "input_linear, k_proj, o_proj, out_proj, output_linear"),
        ("qwen3_moe", ("q_proj", "gate_proj", "up_proj"), "in q_proj and in the experts"),
        ("llama", (), None),
    ],
)
def test_the_plan_of_a_mixture_says_which_layers_get_adapters(
    model_type: str, targets: tuple[str, ...], note: str | None
) -> None:
    config = TrainConfig(data=("",), output="", target_modules=targets)
    text = describe_mixture(make_trainable(build(model_type).requires_grad_(False), config, None))
    assert text is None if note is None else note in (text or "")


def test_layers_whose_adapters_cannot_be_read_back_are_refused() -> None:
    model = build("laguna").requires_grad_(False)
    make_trainable(model, TrainConfig(data=("",), output=""), None)
    config = TrainConfig(data=("",), output="", target_modules=("q_proj", "up_proj"))
    with pytest.raises(ConfigError, match="cannot read back adapters of up_proj"):
        make_trainable(build("laguna").requires_grad_(False), config, None)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["4bit", "8bit"])
def test_an_adapter_is_trained_on_quantised_experts(quant: str, tmp_path: Path) -> None:
    assert len(train("mixtral", "float32", tmp_path, quant=quant)) == 2
