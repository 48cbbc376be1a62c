"""Errors and log lines quote little of long values in a request."""

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from llmctl.config import ServeConfig
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import RequestError
from llmctl.server.app import create_app
from llmctl.types import ModelSpec, ToolCall
from tests.fakes import FakeEngine
from tests.server.servers import chat_body
from tests.tiny import save_tiny_model

LONG = {"one word": "x" * 2**20, "words": "x y " * 2**16, "quotes": "x'y`" * 2**16}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a"}}}
SAMPLING: dict[str, Any] = {"temperature": 0, "stop": ["a"], "user": "me", "stream": False}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "a", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "a"},
        {"role": "user", "content": "a"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "logit_bias": {"1": 1},
    "metadata": {"a": "b"},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT | SAMPLING | {"max_tokens": 1},
    "/v1/completions": {"prompt": ["a"], "max_tokens": 1} | SAMPLING,
    "/v1/responses": {
        "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}}],
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "a"},
            {"role": "user", "content": "a"},
        ],
        "instructions": "a",
        "max_output_tokens": 1,
        "tool_choice": {"type": "function", "name": "add"},
        "metadata": {"a": "b"},
    },
    "/v1/embeddings": {"input": ["a"], "encoding_format": "float", "dimensions": 1},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/v1/score": {"head": "a", "groups": [{"stem": "a", "endings": ["b"]}]},
    "/v1/loglikelihoods": {"head": "a", "groups": [{"stem": "a", "endings": ["b"]}]},
    "/v1/adapters": {"name": "a"},
}
FORMAT = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
}


def variants(value: Any, long: str) -> Iterator[Any]:
    """Yield copies of a JSON value with one leaf, one key or one further key that is long."""
    match value:
        case dict():
            yield value | {long: 1}
            for key, item in value.items():
                yield {long if name == key else name: v for name, v in value.items()}
                for variant in variants(item, long):
                    yield value | {key: variant}
        case list():
            for index, item in enumerate(value):
                for variant in variants(item, long):
                    yield [*value[:index], variant, *value[index + 1 :]]
        case _:
            yield long


def send(app: FastAPI, *requests: tuple[str, str, object]) -> list[httpx.Response]:
    async def send_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await client.request(method, path, json=body) for method, path, body in requests
            ]

    return asyncio.run(send_all())


def quoted(text: str) -> int:
    """Return the number of characters of the long values in a text."""
    return 4 * text.count("x y ") + 4 * text.count("x'y`") + text.count("x" * 8) * 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFRunner]:
    """A model whose context holds the description of a tool in words."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)
    with HFRunner(ModelSpec(str(folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


@pytest.fixture(scope="module")
def app(tiny: HFRunner, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    folder = tmp_path_factory.mktemp("adapters")
    return create_app(tiny, ServeConfig(adapter_dir=str(folder)), scoring=True)


def test_every_route_with_a_body_is_tried(app: FastAPI) -> None:
    paths = app.openapi()["paths"].items()
    documented = {path for path, operations in paths if "post" in operations}
    assert documented == BODIES.keys() - {"/v1/score"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one word", "words"])
@pytest.mark.parametrize("route", [*BODIES, "schema"])
def test_an_error_and_its_log_line_quote_little_of_a_long_value(
    app: FastAPI, tiny: HFRunner, capsys: pytest.CaptureFixture[str], route: str, kind: str
) -> None:
    path = "/v1/chat/completions" if route == "schema" else route
    body = FORMAT | chat_body(max_tokens=1) if route == "schema" else copy.deepcopy(BODIES[route])
    if route != "/v1/adapters":
        body["model"] = tiny.info().model_id
    (whole,) = send(app, ("POST", path, body))
    assert whole.status_code == (404 if route == "/v1/adapters" else 200), whole.text
    sent = list(variants(body, LONG[kind]))
    failed = 0
    for response in send(app, *(("POST", path, variant) for variant in sent)):
        if response.status_code >= 400 or '"error": {' in response.text:
            failed += 1
            assert quoted(response.text) <= 600
            assert len(response.text) < 2500
    assert failed > len(sent) // 3
    assert max(map(len, capsys.readouterr().err.splitlines())) < 1500


@pytest.mark.parametrize("word", ["x", "x%20y%20"])
def test_an_error_and_its_log_line_quote_little_of_a_long_path(
    app: FastAPI, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    long = word * 5000
    paths = [("GET", f"/{long}"), ("GET", f"/v1/models/{long}"), ("DELETE", f"/v1/adapters/{long}")]
    for response in send(app, *((*request, None) for request in [*paths, ("POST", f"/{long}")])):
        assert response.status_code == 404
        assert quoted(response.text) <= 250
    assert max(map(len, capsys.readouterr().err.splitlines())) < 1500


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_the_error_event_of_a_stream_quotes_little(path: str, kind: str) -> None:
    long = LONG[kind]
    error = RequestError(f"the value '{long}' is wrong", param=f"messages[0].{long}")
    app = create_app(FakeEngine(fail=error), ServeConfig(log_requests=False))
    body = {"model": "fake-model", "stream": True} | (
        {"messages": chat_body()["messages"]}
        if "chat" in path
        else {"input" if "responses" in path else "prompt": "a"}
    )
    (response,) = send(app, ("POST", path, body))
    assert response.status_code == 200
    assert "error" in response.text
    assert quoted(response.text) <= 2 * 250


def test_the_log_of_a_broken_call_quotes_little(caplog: pytest.LogCaptureFixture) -> None:
    ToolCall("x" * 2**20, "{", "a").parsed_or_text()
    (message,) = caplog.messages
    assert len(message) < 500
