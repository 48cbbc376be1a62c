from collections.abc import Iterator

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loglikelihood import GroupScore, score_continuations, score_full_texts
from llmctl.engine.openai.batch_client import EchoedText, OpenAIBatchClient
from llmctl.errors import ContextLengthError, EngineStoppedError, UnsupportedError
from llmctl.types import (
    ApiEndpoint,
    GenerationRequest,
    Message,
    SamplingParams,
    Tool,
)
from tests.server.servers import running_server

QUESTION = (Message("user", "hi"),)


@pytest.fixture
def client(tiny: HFRunner) -> Iterator[OpenAIBatchClient]:
    with running_server(tiny) as url, OpenAIBatchClient(ApiEndpoint(url)) as client:
        client.load()
        yield client


def test_a_reply_is_one_chunk_and_equals_that_of_the_engine(
    client: OpenAIBatchClient, tiny: HFRunner
) -> None:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=5)
    request = GenerationRequest(QUESTION, sampling=sampling)
    (chunk,) = client.submit(request)
    assert chunk.finish_reason == "length"
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 5
    expected = tiny.generate(GenerationRequest(QUESTION, sampling=sampling))
    assert chunk.text == expected.choices[0].text


def test_scores_equal_those_of_the_engine_and_a_text_that_is_too_long_fails_alone(
    client: OpenAIBatchClient, tiny: HFRunner
) -> None:
    texts = [("Yes is yes", "Yes is no"), ("x" * 300, "y"), ("abc", "abd")]
    groups = [("Yes is", (" yes", " no")), ("x" * 300, ("y", "z")), ("ab", ("c", "d"))]
    for served, direct in (
        (client.score_full_texts(texts), score_full_texts(tiny, texts)),
        (client.score_continuations(groups), score_continuations(tiny, groups)),
    ):
        outcomes = list(zip(served, direct, strict=True))
        assert [type(one) for one, _ in outcomes] == [GroupScore, ContextLengthError, GroupScore]
        for one, other in outcomes:
            if isinstance(one, GroupScore) and isinstance(other, GroupScore):
                assert [t.token_count for t in one.texts] == [t.token_count for t in other.texts]
                logprobs = [text.logprob for text in other.texts]
                assert [text.logprob for text in one.texts] == pytest.approx(logprobs, rel=1e-4)


def test_a_token_across_the_border_is_part_of_the_continuation() -> None:
    echoed = EchoedText((None, -1.0, -2.0, -4.0), (0, 3, 5, 8))
    assert echoed.full_text_score().logprob == -7.0
    assert echoed.full_text_score().token_count == 4
    assert [echoed.continuation_score(start).token_count for start in (5, 6, 8)] == [2, 2, 1]


def test_tools_are_refused_and_a_closed_client_says_so(client: OpenAIBatchClient) -> None:
    with pytest.raises(UnsupportedError):
        client.submit(GenerationRequest(QUESTION, tools=(Tool("look", "Looks."),)))
    client.close()
    with pytest.raises(EngineStoppedError):
        list(client.score_full_texts([("ab", "cd")]))
