"""Grammar-constrained generation with a random model."""

import json
import re
from typing import Any

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import RequestError
from llmctl.types import GenerationRequest, Grammar, Message, SamplingParams

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Lin"]}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def constrained(grammar: Grammar, **params: Any) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=120, grammar=grammar, **params)
    return GenerationRequest((Message("user", "go"),), sampling=sampling)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_random_model_writes_json_that_matches_the_schema(
    tiny: HFRunner, temperature: float
) -> None:
    result = tiny.generate(
        constrained(Grammar("json_schema", SCHEMA), temperature=temperature, seed=1)
    )
    person = json.loads(result.choices[0].text)
    assert person["name"] in ("Ada", "Lin")
    assert person["age"] <= 99
    assert result.choices[0].finish_reason == "stop"


def test_requests_with_and_without_a_grammar_share_a_batch(tiny: HFRunner) -> None:
    requests = [
        constrained(Grammar("choice", choices=("yes", "no")), seed=1),
        GenerationRequest(prompt="free", sampling=SamplingParams(max_new_tokens=30, seed=1)),
        constrained(Grammar("regex", r"\d{4}-\d{2}"), seed=2),
    ]
    alone = [tiny.generate(request).choices[0].text for request in requests]
    streams = [tiny.submit(request) for request in requests]
    together = ["".join(chunk.text for chunk in stream) for stream in streams]
    assert together == alone
    assert together[0] in ("yes", "no")
    assert re.fullmatch(r"\d{4}-\d{2}", together[2])


def test_every_choice_of_a_request_follows_the_grammar(tiny: HFRunner) -> None:
    result = tiny.generate(
        constrained(Grammar("regex", "[a-f]{3,9}"), n=3, seed=5, temperature=1.0)
    )
    assert all(re.fullmatch("[a-f]{3,9}", choice.text) for choice in result.choices)


def test_a_schema_that_cannot_be_enforced_is_refused_at_submit(tiny: HFRunner) -> None:
    with pytest.raises(RequestError) as caught:
        tiny.submit(constrained(Grammar("json_schema", '{"type": "nonsense"}')))
    assert caught.value.param == "response_format"


def test_a_reply_does_not_end_before_min_new_tokens(tiny: HFRunner) -> None:
    # The bias makes the model end as soon as it may.
    request = GenerationRequest(
        prompt="abc",
        sampling=SamplingParams(
            temperature=0, min_new_tokens=7, max_new_tokens=20, logit_bias=((257, 100.0),)
        ),
    )
    assert tiny.generate(request).usage.completion_tokens == 8
