"""The text part of vision-language checkpoints, batched like any other model."""

from pathlib import Path

import pytest
import torch

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams
from tests.tiny import byte_tokenizer
from tests.vision import build_vision_model


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", ["qwen3_vl", "mistral3", "qwen2_5_vl", "glm4v", "video_llama_3"]
)
def test_text_is_generated_in_a_batch_as_by_generate(model_type: str, tmp_path: Path) -> None:
    model = build_vision_model(model_type)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    prompts = [[12 + (7 * i + 5 * j) % 240 for j in range(1 + 5 * i)] for i in range(6)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=999,
        )
        expected.append(output[0, len(prompt) :].tolist())
    sampling = SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True, logprobs=0)
    with HFRunner(ModelSpec(str(tmp_path), device="cpu", dtype="float32")) as engine:
        engine.load()
        assert engine.path == "batched"
        streams = [
            engine.submit(GenerationRequest(prompt=tuple(prompt), sampling=sampling))
            for prompt in prompts
        ]
        found = [[e.chosen.token_id for chunk in s for e in chunk.logprobs] for s in streams]
    assert found == expected
