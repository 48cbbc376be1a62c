"""`OpenAIClient` against the server of this package."""

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.engine.base import SupportsTokenize, require
from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.openai.client import OpenAIClient
from llmctl.engine.registry import create_engine
from llmctl.errors import (
    AuthenticationError,
    ConfigError,
    ContextLengthError,
    EngineFailedError,
    EngineStoppedError,
    LlmctlError,
    ModelNotFoundError,
    RequestError,
    UnsupportedError,
)
from llmctl.types import (
    ApiEndpoint,
    GenerationRequest,
    Grammar,
    Message,
    ModelSpec,
    SamplingParams,
    Tool,
    ToolCall,
)
from tests.adapters import save_adapter
from tests.fakes import FakeEngine
from tests.server.servers import running_server, wait_until

MESSAGES = (Message("system", "s"), Message("user", "q"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(("Hel", ResponseDelta(reasoning="hm"), "lo"))


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[OpenAIClient]:
    with running_server(engine) as url, connected(url) as client:
        yield client


def connected(url: str, model: str | None = None, key: str | None = None) -> OpenAIClient:
    client = create_engine(ApiEndpoint(url, model, key))
    assert isinstance(client, OpenAIClient)
    client.load()
    return client


def test_a_result_equals_that_of_the_served_engine(
    client: OpenAIClient, engine: FakeEngine
) -> None:
    sampling = SamplingParams(
        max_new_tokens=5, temperature=0.0, top_k=0, min_p=0.1, seed=0, stop=("x",), n=2
    )
    result = client.generate(GenerationRequest(MESSAGES, sampling=sampling))
    assert [choice.text for choice in result.choices] == ["Hello", "Hello"]
    assert result.choices[0].reasoning == "hm"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 6)
    (request,) = engine.requests
    assert request.messages == MESSAGES
    assert request.sampling == sampling
    assert client.info().model_id == "fake-model"
    assert client.info().context_length == 128
    assert client.in_flight == 0


def test_grammars_and_tools_reach_the_server(client: OpenAIClient, engine: FakeEngine) -> None:
    for grammar in (
        Grammar("json_schema", '{"type": "object"}'),
        Grammar("choice", choices=("a",)),
    ):
        client.generate(GenerationRequest(MESSAGES, sampling=SamplingParams(grammar=grammar)))
        assert engine.requests[-1].sampling.grammar is not None
        assert engine.requests[-1].sampling.grammar.kind == grammar.kind
    engine.pieces = (ResponseDelta(call=ToolCall("look", '{"at": 1}', "call_1")),)
    tools = (Tool("look", "Looks.", {"type": "object", "properties": {}}),)
    result = client.generate(GenerationRequest(MESSAGES, tools=tools, required_tools=("look",)))
    assert result.choices[0].tool_calls == (ToolCall("look", '{"at": 1}', "call_1"),)
    assert result.choices[0].finish_reason == "tool_calls"
    assert engine.requests[-1].required_tools == ("look",)


def test_a_cancelled_request_ends_on_the_server(client: OpenAIClient, engine: FakeEngine) -> None:
    engine.hold = threading.Event()
    with client.submit(GenerationRequest(MESSAGES)) as stream:
        assert next(iter(stream)).text == "Hel"
    assert wait_until(lambda: engine.in_flight == 0)
    assert wait_until(lambda: client.in_flight == 0)


@pytest.mark.slow
def test_close_during_a_request_ends_its_task(
    client: OpenAIClient, caplog: pytest.LogCaptureFixture
) -> None:
    stream = client.submit(GenerationRequest((Message("user", "hi"),)))
    client.close()
    with pytest.raises(EngineStoppedError):
        list(stream)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ContextLengthError("too long"), ContextLengthError),
        (RequestError("nonsense"), RequestError),
        (EngineStoppedError("closing"), EngineStoppedError),
        (EngineFailedError("broken"), LlmctlError),
    ],
)
def test_an_error_of_the_server_keeps_its_kind_and_message(
    client: OpenAIClient, engine: FakeEngine, error: LlmctlError, kind: type[LlmctlError]
) -> None:
    engine.reject = error
    with pytest.raises(kind, match=str(error)):
        client.generate(GenerationRequest(MESSAGES))
    engine.reject, engine.fail = None, error
    pieces = []
    with pytest.raises(LlmctlError, match=str(error)):  # noqa: PT012  the stream is read inside
        for chunk in client.submit(GenerationRequest(MESSAGES)):
            pieces.append(chunk.text)
    assert "".join(pieces) == "Hello"


def test_errors_of_the_connection_name_their_cause(engine: FakeEngine) -> None:
    with running_server(engine, api_keys=("right",)) as url:
        with pytest.raises(AuthenticationError):
            connected(url, key="wrong")
        with pytest.raises(ModelNotFoundError, match="no model 'other'"):
            connected(url, "other", "right")
        connected(url, "fake-model", "right").close()
    with pytest.raises(EngineStoppedError, match="no server answers"):
        connected(url)
    with pytest.raises(ConfigError):
        create_engine(ModelSpec("m"), "openai")


def test_raw_prompts_and_tokenisation_are_unsupported(client: OpenAIClient) -> None:
    with pytest.raises(UnsupportedError):
        require(client, SupportsTokenize)
    with pytest.raises(UnsupportedError):
        client.submit(GenerationRequest(prompt="raw"))
    client.close()
    client.close()
    with pytest.raises(EngineStoppedError):
        client.submit(GenerationRequest(MESSAGES))


@pytest.mark.slow
def test_an_adapter_of_the_server_is_selected_by_name(
    tiny: HFRunner, tiny_folder: Path, tmp_path: Path
) -> None:
    tiny.load_adapter("manners", str(save_adapter(tmp_path / "manners", tiny_folder)))
    request = GenerationRequest(
        MESSAGES, sampling=SamplingParams(temperature=0.0, max_new_tokens=60), adapter="manners"
    )
    try:
        with running_server(tiny) as url, connected(url) as client:
            assert client.adapters == ("manners",)
            assert client.info().model_id == "tiny-llama"
            reply = client.generate(request).choices[0].text
        assert reply == tiny.generate(request).choices[0].text
        assert reply != tiny.generate(replace(request, adapter=None)).choices[0].text
    finally:
        tiny.begin_unload_adapter("manners").result()
