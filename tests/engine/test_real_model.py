"""Tests with the default model, which the first run downloads through the catalogue."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llmctl.engine.batching.forward.int4 import int4_supported
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.memory.estimate import estimate_weight_bytes
from llmctl.engine.models.catalog import CATALOG
from llmctl.engine.stream import collect_result
from llmctl.types import (
    Choice,
    GenerationRequest,
    Grammar,
    Message,
    ModelSpec,
    Quant,
    SamplingParams,
    ScoreRequest,
)

pytestmark = pytest.mark.real_model

CAPITAL_QUESTION = (Message("user", "What is the capital of France?"),)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def quantised(request: pytest.FixtureRequest) -> Iterator[HFRunner]:
    quant: Quant = request.param
    with HFRunner(ModelSpec("smollm2-135m", quant=quant, device="cpu")) as engine:
        engine.load()
        yield engine


def greedy(**params: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_new_tokens": 60, **params})


@pytest.fixture(scope="module")
def reply(smollm: HFRunner) -> Choice:
    return smollm.generate(GenerationRequest(CAPITAL_QUESTION, sampling=greedy())).choices[0]


@pytest.mark.slow
def test_a_reply_is_correct_and_ends_by_itself(reply: Choice) -> None:
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert "<|" not in reply.text


@pytest.mark.slow
def test_streamed_text_equals_the_whole_text(smollm: HFRunner) -> None:
    request = GenerationRequest(
        (Message("user", "Count from one to ten in words."),), sampling=greedy(max_new_tokens=12)
    )
    with smollm.submit(request) as stream:
        streamed = "".join(chunk.text for chunk in stream)
    assert streamed == smollm.generate(request).choices[0].text
    assert len(streamed) > 5


@pytest.mark.slow
def test_a_stop_string_across_tokens_ends_the_text_exactly(smollm: HFRunner, reply: Choice) -> None:
    # It begins within one token and ends within another.
    stop = "ance is Par"
    assert stop in reply.text
    request = GenerationRequest(CAPITAL_QUESTION, sampling=greedy(stop=(stop,)))
    with smollm.submit(request) as stream:
        chunks = list(stream)
    assert "".join(c.text for c in chunks) == reply.text[: reply.text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.slow
def test_characters_of_several_tokens_are_returned_whole(smollm: HFRunner) -> None:
    text = "你好 👩‍👩‍👧 naïve café"
    sampling = greedy(grammar=Grammar("choice", choices=(text,)))
    with smollm.submit(GenerationRequest(CAPITAL_QUESTION, sampling=sampling)) as stream:
        chunks = list(stream)
    pieces = [chunk.text for chunk in chunks if chunk.text]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > len(text)  # several tokens for a character


@pytest.mark.slow
def test_quantised_weights_answer_correctly_and_are_smaller(quantised: HFRunner) -> None:
    request = ScoreRequest("The capital of France is", (" Paris", " Rome", " London", " a"))
    paris, *others = (score.logprob for score in quantised.score([request])[0])
    assert paris > max(others) + 1
    info, entry = quantised.info(), CATALOG[0]
    expected = estimate_weight_bytes(
        entry.linear_parameters,
        entry.parameters - entry.linear_parameters,
        2,
        info.quant,
        int4=int4_supported(),
    )
    if info.dtype == "float32":  # the head is a packed copy of the embedding
        expected += 2 * 49152 * 576
    assert info.weight_bytes == pytest.approx(expected, rel=0.02)


def test_the_right_continuation_scores_higher(smollm: HFRunner) -> None:
    right, wrong = smollm.score([ScoreRequest("The capital of France is", (" Paris", " Rome"))])[0]
    assert right.logprob > wrong.logprob
    assert right.is_greedy
    assert not wrong.is_greedy


@pytest.mark.slow
def test_batched_replies_equal_those_of_transformers(
    smollm: HFRunner, reference_smollm: tuple[Any, Any]
) -> None:
    openings = ("Name a river.", "Write one line about rain.", "What is 3 + 4?", "Say hello.")
    requests = []
    for i in range(4):
        system = [Message("system", "Answer briefly.")] * (i % 2)
        sampling = SamplingParams(temperature=0, max_new_tokens=6 + i, logprobs=0)
        for opening in openings:
            turns = (*system, Message("user", f"{opening} {i}"))
            requests.append(GenerationRequest(turns, sampling=sampling))
    streams = [smollm.submit(request) for request in requests]
    replies = [collect_result(stream).choices[0] for stream in streams]
    model, tokenizer = reference_smollm
    template = ChatTemplate.of(tokenizer)
    prompts = [template.render(request.messages).ids for request in requests]
    outputs = [[entry.chosen.token_id for entry in reply.logprobs] for reply in replies]
    texts = [prompt + ids for prompt, ids in zip(prompts, outputs, strict=True)]
    # Causal attention ignores the padding on the right.
    width = max(map(len, texts))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in texts])
    with torch.inference_mode():
        predicted = model(padded).logits.argmax(-1).tolist()
    for prompt, ids, row, reply in zip(prompts, outputs, predicted, replies, strict=True):
        # Greedy decoding: each token is the most likely one after those before it.
        expected = ids if reply.finish_reason == "length" else [*ids, tokenizer.eos_token_id]
        assert row[len(prompt) - 1 :][: len(expected)] == expected
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert reply.text == text.rstrip("\ufffd")  # the limit may cut a character
