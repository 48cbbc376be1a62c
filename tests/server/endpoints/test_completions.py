"""`/v1/completions`, `/tokenize` and `/detokenize` with a tiny real model."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.server.convert.completions import EchoedPrompt
from llmctl.types import ScoreRequest, TokenLogprob, TokenProb
from tests.server.servers import error_body, running_server, send_request

URL = "/v1/completions"


@pytest.fixture(scope="module")
def url(tiny: HFRunner) -> Iterator[str]:
    engine = _SharedEngine(tiny)
    with running_server(engine) as url:
        yield url


class _SharedEngine(HFRunner):
    """The engine shared by the tests; the server must not close it."""

    def __init__(self, engine: HFRunner) -> None:
        self.__dict__ = engine.__dict__

    def close(self) -> None:
        pass


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(tiny: HFRunner) -> str:
    return tiny.info().model_id


def test_a_prompt_is_completed_with_sixteen_tokens_by_default(
    client: openai.OpenAI, model: str
) -> None:
    reply = client.completions.create(
        model=model, prompt="ab", temperature=0, extra_body={"ignore_eos": True}
    )
    assert reply.object == "text_completion"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 16)
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("prompt", ["ab", ["ab"], [65, 66], [[65, 66]]])
def test_every_form_of_a_prompt_is_accepted(prompt: Any, client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(model=model, prompt=prompt, max_tokens=2, temperature=0)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 2


def test_choices_of_several_prompts_are_numbered_through(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "echo": True, "n": 2}
    prompts = ["one", "two words", "three"]
    whole = client.completions.create(model=model, prompt=prompts, **options)
    assert [c.index for c in whole.choices] == list(range(6))
    for number, prompt in enumerate(prompts):
        for choice in whole.choices[2 * number : 2 * number + 2]:
            assert choice.text.startswith(prompt)
    texts = dict.fromkeys(range(6), "")
    stream = client.completions.create(
        model=model, prompt=prompts, stream=True, stream_options={"include_usage": True}, **options
    )
    usage = None
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [c.text for c in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


def test_an_echo_alone_returns_the_prompt_logprobs(
    client: openai.OpenAI, model: str, tiny: HFRunner
) -> None:
    """Evaluation by log-likelihood over HTTP relies on it."""
    text = "hello ü"
    reply = client.completions.create(model=model, prompt=text, max_tokens=0, echo=True, logprobs=2)
    (choice,) = reply.choices
    assert choice.text == text
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    ids = tuple(tiny.tokenize(text))
    ((score,),) = tiny.score([ScoreRequest(ids[:1], (ids[1:],))])
    assert sum(logprobs.token_logprobs[1:]) == pytest.approx(score.logprob, abs=1e-4)
    assert len(logprobs.tokens) == len(ids)
    assert len(logprobs.top_logprobs[1]) == 2
    assert max(logprobs.top_logprobs[1].values()) >= logprobs.token_logprobs[1]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 0


def test_streamed_logprobs_equal_the_complete_ones(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"prompt": "ab", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(model=model, **options).choices[0].logprobs
    assert whole is not None
    parts = [
        event.choices[0].logprobs
        for event in client.completions.create(model=model, stream=True, **options)
    ]
    joined = [token for part in parts if part is not None for token in part.tokens or ()]
    offsets = [offset for part in parts if part is not None for offset in part.text_offset or ()]
    assert joined == whole.tokens
    assert offsets == whole.text_offset


def offsets_of(choice: Any) -> list[int]:
    offsets: list[int] = [] if choice.logprobs is None else choice.logprobs.text_offset
    return offsets


def test_the_offset_of_a_partial_character_is_that_of_the_character(
    client: openai.OpenAI, model: str
) -> None:
    """The tiny model has one token per byte."""
    text = "a你好，b"
    expected = [at for at, character in enumerate(text) for _ in character.encode()]
    options: dict[str, Any] = {"model": model, "logprobs": 2}
    echoed = client.completions.create(prompt=text, max_tokens=0, echo=True, **options)
    assert offsets_of(echoed.choices[0]) == expected
    options |= {"prompt": "x", "max_tokens": 20, "extra_body": {"regex": text}}
    whole = client.completions.create(**options)
    assert whole.choices[0].text == text
    assert offsets_of(whole.choices[0])[: len(expected)] == expected
    streamed = client.completions.create(stream=True, **options)
    assert [at for event in streamed for at in offsets_of(event.choices[0])] == offsets_of(
        whole.choices[0]
    )


@pytest.mark.parametrize(
    ("text", "tokens", "expected"), [("ab", (" a", "b"), [0, 0, 1]), ("ab", ("a", "b"), [0, 0, 1])]
)
def test_added_tokens_do_not_shift_offsets(
    text: str, tokens: tuple[str, ...], expected: list[int]
) -> None:
    probs = [TokenProb(i, token, token.encode(), -1.0) for i, token in enumerate(tokens)]
    echo = EchoedPrompt(text, "<s>", tuple(TokenLogprob(prob, ()) for prob in probs))
    assert echo.logprobs((), 0).text_offset == expected


def test_a_streamed_echo_generates_no_token(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "max_tokens": 0, "echo": True, "n": 2}
    *events, last = client.completions.create(
        prompt=["one", "two"], stream=True, stream_options={"include_usage": True}, **options
    )
    choices = [choice for event in events for choice in event.choices]
    received = [(choice.index, choice.text, choice.finish_reason) for choice in choices]
    texts = ["one", "one", "two", "two"]
    assert received == [(index, text, "length") for index, text in enumerate(texts)]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (6, 0)


def test_more_prompts_than_the_queue_holds_are_400() -> None:
    """The fake engine runs four requests at a time."""
    for count, status in ((5, 200), (6, 400)):
        body = {"model": "fake-model", "prompt": ["x"] * count}
        reply = send_request(None, "POST", URL, json=body, max_queue=1)
        assert reply.status_code == status
    error = error_body(reply)
    assert error["param"] == "prompt"
    assert "5" in error["message"]
    assert "--max-queue" in error["message"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": 5}, "invalid_type", "prompt"),
        ({"prompt": []}, "empty_array", "prompt"),
        ({"prompt": [-1]}, "integer_below_min_value", "prompt[0]"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_parameter", "suffix"),
        ({"prompt": "x", "best_of": 3}, "invalid_value", "best_of"),
        ({"prompt": "x", "max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"prompt": "x", "logprobs": 6}, "integer_above_max_value", "logprobs"),
        ({"prompt": "x", "messages": []}, None, None),
        ({}, "missing_required_parameter", "prompt"),
    ],
)
def test_invalid_fields_are_refused_by_name(
    fields: dict[str, Any], code: str | None, param: str | None
) -> None:
    reply = send_request(None, "POST", URL, json={"model": "fake-model"} | fields)
    assert reply.status_code == 400
    assert (error_body(reply)["code"], error_body(reply)["param"]) == (code, param)


def test_a_refused_prompt_fails_the_whole_request(url: str, model: str) -> None:
    body = {"model": model, "prompt": ["ok", "x" * 5000], "max_tokens": 2}
    for fields in ({}, {"stream": True}, {"stream": True, "echo": True}):
        reply = httpx.post(url + URL, json=body | fields)
        assert reply.status_code == 400
        assert error_body(reply)["code"] == "context_length_exceeded"


def test_detokenize_inverts_tokenize(url: str, model: str) -> None:
    text = "naïve 你好 <|im_end|>"
    tokenized = httpx.post(url + "/tokenize", json={"model": model, "prompt": text}).json()
    assert tokenized["count"] == len(tokenized["tokens"])
    assert tokenized["max_model_len"] == 256
    text_again = httpx.post(url + "/detokenize", json={"tokens": tokenized["tokens"]}).json()
    assert json.loads(json.dumps(text_again)) == {"prompt": text}
    unknown = httpx.post(url + "/detokenize", json={"tokens": [10**6]})
    assert unknown.status_code == 400
    assert error_body(unknown)["param"] == "tokens"
