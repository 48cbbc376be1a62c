"""Two steps of fine-tuning on tiny models of many types, and the adapter when it is served."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from llmctl.config.settings import Setting
from llmctl.engine.hf_runner import HFRunner
from llmctl.services.finetuning.run import FinetuneRequest, finetune
from llmctl.types import ModelSpec, ScoreRequest, TrainEvent, TrainStep
from tests.compat.architectures import build
from tests.tiny import byte_tokenizer
from tests.vision import build_vision_model

TEXT = tuple(b"say 3, it is 21")
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
    base, output, data = tmp_path / "base", tmp_path / "adapter", tmp_path / "rows.jsonl"
    model = build_vision_model(model_type) if model_type in VISION else build(model_type)
    model.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    rows = [{"prompt": f"say {i}", "completion": f"it is {7 * i}"} for i in range(8)]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = {
        "model": str(base),
        "data": str(data),
        "output": str(output),
        "max_steps": 2,
        "batch_size": 4,
        "learning_rate": 0.05,
        "dtype": dtype,
        "device": "cpu",
        "eval_fraction": 0,
    }
    losses: list[float] = []

    def listener(event: TrainEvent) -> None:
        if isinstance(event, TrainStep):
            losses.append(event.loss)

    settings = {name: Setting(value, "option") for name, value in options.items()}
    finetune(FinetuneRequest(options=settings, track=False), listener)
    assert len(losses) == 2

    kind = AutoModelForImageTextToText if model_type in VISION else AutoModelForCausalLM
    stock = kind.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor(TEXT)
    with torch.inference_mode():
        before = stock(ids[None]).logits[0].log_softmax(-1)
        after = PeftModel.from_pretrained(stock, str(output)).eval()(ids[None]).logits[0]
    assert float((after.log_softmax(-1) - before).abs().max()) > 1e-3
    expected = after.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
    spec = ModelSpec(str(base), adapter=str(output), device="cpu", dtype="float32")
    with HFRunner(spec) as engine:
        engine.load()
        request = ScoreRequest(TEXT[:1], (TEXT[1:],), logprobs=0)
        score = engine.submit_scores([request]).result()[0][0]
    served = torch.tensor([token.chosen.logprob for token in score.tokens])
    assert served == pytest.approx(expected, abs=1e-3)


def test_the_router_and_the_experts_of_a_mixture_are_left_out_by_default() -> None:
    from llmctl.train.setup.trainable_parameters import default_target_modules

    assert default_target_modules(build("llama")) == ("all-linear",)
    assert default_target_modules(build("mixtral")) == ("k_proj", "o_proj", "q_proj", "v_proj")
    mamba = default_target_modules(build("falcon_mamba"))
    assert {"in_proj", "x_proj"} <= set(mamba)
    assert "out_proj" not in mamba
