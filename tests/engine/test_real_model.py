"""What only a trained model can show. The first run fetches it through the catalogue."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.models import resolve
from llmctl.types import GenerationRequest, Message, ModelSpec, Quant, SamplingParams, ScoreRequest

pytestmark = pytest.mark.real_model

QUESTION = (Message("user", "What is the capital of France?"),)


@pytest.fixture(scope="module", params=["4bit", "8bit"])
def quantised(request: pytest.FixtureRequest) -> Iterator[HFRunner]:
    quant: Quant = request.param
    with HFRunner(ModelSpec("smollm2-135m", quant=quant, device="cpu")) as engine:
        engine.load()
        yield engine


def greedy(**params: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_new_tokens=60, **params)


def test_it_answers_and_ends_by_itself(smollm: HFRunner) -> None:
    result = smollm.generate(GenerationRequest(QUESTION, sampling=greedy()))
    assert "Paris" in result.choices[0].text
    assert result.choices[0].finish_reason == "stop"
    assert "<|" not in result.choices[0].text


def test_greedy_chat_is_the_same_text_streamed_and_not(smollm: HFRunner) -> None:
    request = GenerationRequest(
        (Message("user", "Count from one to ten in words."),), sampling=greedy()
    )
    with smollm.submit(request) as stream:
        streamed = "".join(chunk.text for chunk in stream)
    assert streamed == smollm.generate(request).choices[0].text
    assert len(streamed) > 20


def test_a_stop_string_split_over_tokens_cuts_exactly(smollm: HFRunner) -> None:
    whole = smollm.generate(GenerationRequest(QUESTION, sampling=greedy())).choices[0].text
    # Begins inside one token and ends inside another.
    stop = "ance is Par"
    assert stop in whole
    with smollm.submit(GenerationRequest(QUESTION, sampling=greedy(stop=(stop,)))) as stream:
        chunks = list(stream)
    assert "".join(c.text for c in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_characters_of_many_tokens_arrive_whole(smollm: HFRunner) -> None:
    # The model would not write this by itself; what it repeats it writes byte by byte.
    turns = (Message("user", "Repeat exactly: 你好 👩‍👩‍👧 naïve café"),)
    with smollm.submit(GenerationRequest(turns, sampling=greedy())) as stream:
        pieces = [chunk.text for chunk in stream]
    assert not any("\ufffd" in piece for piece in pieces)


def test_quantised_weights_still_know_the_capital(quantised: HFRunner) -> None:
    result = quantised.generate(GenerationRequest(QUESTION, sampling=greedy()))
    assert "Paris" in result.choices[0].text
    assert quantised.info().weight_bytes < 200_000_000


def test_the_right_continuation_scores_higher(smollm: HFRunner) -> None:
    right, wrong = smollm.score([ScoreRequest("The capital of France is", (" Paris", " Rome"))])[0]
    assert right.logprob > wrong.logprob
    assert right.is_greedy
    assert not wrong.is_greedy


def test_sixteen_conversations_in_company_say_what_each_says_alone(smollm: HFRunner) -> None:
    openings = ("Name a river.", "Write one line about rain.", "What is 3 + 4?", "Say hello.")
    requests = []
    for i in range(4):
        system = [Message("system", "Answer briefly.")] * (i % 2)
        sampling = SamplingParams(temperature=0, max_new_tokens=6 + i)
        for opening in openings:
            turns = (*system, Message("user", f"{opening} {i}"))
            requests.append(GenerationRequest(turns, sampling=sampling))
    streams = [smollm.submit(request) for request in requests]
    together = ["".join(chunk.text for chunk in stream) for stream in streams]
    model, tokenizer = stock_model()
    for request, text in zip(requests, together, strict=True):
        ids = ChatTemplate.of(tokenizer).encode(request.messages)
        output = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=request.sampling.max_new_tokens
        )
        alone = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert text == alone.rstrip("\ufffd")  # the limit may cut a character in half


def stock_model() -> tuple[Any, Any]:
    folder = resolve.resolve_model("smollm2-135m").path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
