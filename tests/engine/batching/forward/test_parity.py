"""Every executor generates the text of Transformers' `generate()`, alone and in a batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, MemoryLimits, ModelSpec, SamplingParams
from tests.architectures import ARCHITECTURES
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    _, overrides = ARCHITECTURES[name]
    return save_tiny_model(tmp_path_factory.mktemp("arch") / name, model_type=name, **overrides)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[HFRunner]:
    with HFRunner(ModelSpec(str(folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


@dataclass
class Reference:
    """The stock model and its tokenizer."""

    model: Any
    tokenizer: Any

    def generate(self, prompt: str) -> list[int]:
        """Return the ids of twelve greedy tokens."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=12)
        ids: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
        return ids


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return Reference(model, AutoTokenizer.from_pretrained(folder))


def prompts() -> list[str]:
    """Return sixteen prompts of very different lengths, some with a shared prefix."""
    return ["ab" * (i % 5) + chr(97 + i) * (1 + 7 * (i % 4)) for i in range(16)]


def greedy(prompt: str, **params: Any) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, **params)
    return GenerationRequest(prompt=prompt, sampling=sampling)


def generated_ids(engine: HFRunner, requests: list[GenerationRequest]) -> list[list[int]]:
    streams = [engine.submit(request) for request in requests]
    return [
        [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
        for stream in streams
    ]


def test_each_architecture_gets_its_executor(engine: HFRunner, folder: Path) -> None:
    assert engine.path == ARCHITECTURES[folder.name][0]


def test_an_embedding_has_the_width_of_the_hidden_states(engine: HFRunner) -> None:
    (vector,) = engine.submit_embeddings(["abc"]).result()
    assert len(vector) == 32


@pytest.mark.slow
def test_every_request_of_a_mixed_batch_equals_generate(
    engine: HFRunner, reference: Reference
) -> None:
    requests = [greedy(prompt, logprobs=0) for prompt in prompts()]
    together = generated_ids(engine, requests)
    for prompt, ids in zip(prompts(), together, strict=True):
        assert ids == reference.generate(prompt), prompt


@pytest.mark.slow
def test_prompts_far_longer_than_windows_and_chunks_equal_generate(
    engine: HFRunner, reference: Reference
) -> None:
    long = ["".join(chr(97 + (i * i + n) % 26) for i in range(200 + 17 * n)) for n in range(3)]
    together = generated_ids(engine, [greedy(prompt, logprobs=0) for prompt in long])
    for prompt, ids in zip(long, together, strict=True):
        assert ids == reference.generate(prompt)


@pytest.mark.slow
def test_a_batch_of_different_parameters_equals_each_request_alone(engine: HFRunner) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_p": 0.8, "seed": 2},
        {"temperature": 1.5, "top_k": 5, "min_p": 0.05, "seed": 3},
        {"temperature": 1.0, "frequency_penalty": 1.0, "presence_penalty": 0.5, "seed": 4},
        {"temperature": 0, "repetition_penalty": 1.3},
        {"temperature": 0, "logit_bias": ((40, 5.0),)},
    ]
    requests = [
        GenerationRequest(
            prompt=prompt,
            sampling=SamplingParams(max_new_tokens=12, logprobs=0, ignore_eos=True, **kind),
        )
        for prompt, kind in zip(prompts(), kinds * 3, strict=False)
    ]
    alone = [generated_ids(engine, [request])[0] for request in requests]
    assert generated_ids(engine, requests) == alone


def test_speculation_does_not_change_the_text(engine: HFRunner, reference: Reference) -> None:
    # A repetitive prompt, so that there are drafts; no log-probabilities, which turn them off.
    prompt = "abcdefg hijk " * 6
    expected = reference.tokenizer.decode(reference.generate(prompt), skip_special_tokens=True)
    text = engine.generate(greedy(prompt)).choices[0].text
    assert isinstance(expected, str)
    assert text == expected.rstrip("\ufffd")


def test_an_8bit_kv_cache_changes_log_probabilities_little(
    tiny: HFRunner, tiny_folder: Path
) -> None:
    request = GenerationRequest(
        prompt="abc" * 20, sampling=SamplingParams(temperature=0, max_new_tokens=6, logprobs=0)
    )

    def logprobs(engine: HFRunner) -> list[float]:
        assert engine.path == "fused"
        entries = engine.generate(request).choices[0].logprobs
        return [entry.chosen.logprob for entry in entries]

    limits = MemoryLimits(kv_quant="8bit")
    spec = ModelSpec(str(tiny_folder), dtype="float32", device="cpu", limits=limits)
    with HFRunner(spec) as engine:
        engine.load()
        quantised = logprobs(engine)
    assert quantised != logprobs(tiny)
    assert quantised == pytest.approx(logprobs(tiny), abs=0.1)
