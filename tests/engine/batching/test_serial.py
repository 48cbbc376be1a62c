"""Requests that run one at a time through `generate()`."""

from pathlib import Path

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams
from tests.compat.architectures import build
from tests.tiny import byte_tokenizer


@pytest.mark.slow
def test_states_that_modules_keep_do_not_reach_the_next_request(tmp_path: Path) -> None:
    # RecurrentGemma continues from its modules' states if a prompt has one token.
    build("recurrent_gemma").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    sampling = SamplingParams(temperature=0, max_new_tokens=8, ignore_eos=True, logprobs=0)
    prompts = [(5,), tuple(range(30, 60)), (5,)]
    with HFRunner(ModelSpec(str(tmp_path), device="cpu", dtype="float32")) as engine:
        engine.load()
        assert engine.path == "serial"
        replies = [
            engine.generate(GenerationRequest(prompt=prompt, sampling=sampling)).choices[0].logprobs
            for prompt in prompts
        ]
    ids = [[entry.chosen.token_id for entry in reply] for reply in replies]
    assert ids[0] == ids[2] != ids[1]
