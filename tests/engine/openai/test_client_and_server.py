"""The `openai` client library against the server of this package."""

import asyncio
import json
import threading
from collections.abc import Iterator

import openai
import pydantic
import pytest

from llmctl.errors import ContextLengthError, EngineBusyError, EngineFailedError
from tests.fakes import FakeEngine
from tests.server.servers import running_server, wait_until

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with running_server(engine) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="fake-model", messages=MESSAGES)
    assert reply.choices[0].message.content == "Hello"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 9
    assert reply._request_id


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake-model",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello"
    assert chunks[-1].usage is not None


def test_the_stream_helper_accumulates_choices(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake-model", messages=MESSAGES, n=2) as stream:
        reply = stream.get_final_completion()
    assert [choice.message.content for choice in reply.choices] == ["Hello", "Hello"]


def test_the_async_client(url: str) -> None:
    async def talk() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            create = client.chat.completions.create
            reply = await create(model="fake-model", messages=MESSAGES)
            stream = await create(model="fake-model", messages=MESSAGES, stream=True)
            streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return reply.choices[0].message.content, "".join(streamed)

    assert asyncio.run(talk()) == ("Hello", "Hello")


def test_concurrent_requests(url: str) -> None:
    async def ask(client: openai.AsyncOpenAI, stream: bool) -> str:
        if not stream:
            reply = await client.chat.completions.create(model="fake-model", messages=MESSAGES)
            return reply.choices[0].message.content or ""
        chunks = await client.chat.completions.create(
            model="fake-model", messages=MESSAGES, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, bool(i % 2)) for i in range(40)))

    assert asyncio.run(ask_all()) == ["Hello"] * 40


def test_extra_body_sets_the_extensions(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(
        model="fake-model",
        messages=MESSAGES,
        temperature=0,
        extra_body={"top_k": 5, "min_p": 0.1},
    )
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0.0, 5, 0.1)


def test_parse_sends_a_json_schema() -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    json_engine = FakeEngine(('{"name": "Ada",', ' "age": 36}'))
    with (
        running_server(json_engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        reply = client.chat.completions.parse(
            model="fake-model", messages=MESSAGES, response_format=Person
        )
    assert reply.choices[0].message.parsed == Person(name="Ada", age=36)
    grammar = json_engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["name", "age"]


def test_a_message_of_the_client_is_valid_history(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="fake-model", messages=MESSAGES)
    history = [*MESSAGES, reply.choices[0].message, *MESSAGES]
    again = client.chat.completions.create(
        model="fake-model",
        messages=history,  # type: ignore[arg-type]  # the SDK takes its own replies at run time
    )
    assert again.choices[0].message.content == "Hello"


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake-model"]
    assert client.models.retrieve("fake-model").id == "fake-model"


def test_http_errors_are_exceptions_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("meta/llama")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="fake-model", messages=MESSAGES, temperature=3)
    assert wrong.value.code == "decimal_above_max_value"
    assert wrong.value.param == "temperature"


@pytest.mark.parametrize("stream", [False, True])
def test_engine_errors_are_exceptions_of_the_client(
    client: openai.OpenAI, engine: FakeEngine, stream: bool
) -> None:
    def ask() -> None:
        client.chat.completions.create(model="fake-model", messages=MESSAGES, stream=stream)

    try:
        engine.reject = ContextLengthError("too long", param="messages")
        with pytest.raises(openai.BadRequestError) as long:
            ask()
        assert long.value.code == "context_length_exceeded"
        engine.reject = EngineBusyError("full")
        with pytest.raises(openai.RateLimitError):
            ask()
    finally:
        engine.reject = None


def test_an_error_within_a_stream_is_raised(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.fail = EngineFailedError("broke")
    try:
        stream = client.chat.completions.create(model="fake-model", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="broke"):
            list(stream)
    finally:
        engine.fail = None


def test_chunks_arrive_before_the_end_of_the_generation(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.hold = threading.Event()
    try:
        stream = iter(
            client.chat.completions.create(model="fake-model", messages=MESSAGES, stream=True)
        )
        next(stream)
        assert next(stream).choices[0].delta.content == "Hel"
        engine.hold.set()
        assert next(stream).choices[0].delta.content == "lo"
        list(stream)
    finally:
        engine.hold = None


def test_closing_a_stream_cancels_the_request(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.hold = threading.Event()
    try:
        stream = client.chat.completions.create(model="fake-model", messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
        assert wait_until(lambda: engine.streams[-1].cancelled)
    finally:
        engine.hold = None
