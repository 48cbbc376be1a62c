"""The request log and the Prometheus metrics."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from llmctl.errors import EngineFailedError
from llmctl.server.app import create_app
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, send_request


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line_without_content(
    stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    body = chat_body(stream=stream, messages=[{"role": "user", "content": "a secret"}])
    reply = send_request(None, "POST", CHAT, json=body, log_requests=True)
    (line,) = logged(capsys)
    assert line["request_id"] == reply.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", CHAT, 200)
    assert (line["model"], line["stream"]) == ("fake-model", stream)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 2)
    assert line["first_token_ms"] <= line["ms"]
    assert "secret" not in json.dumps(line)
    assert not {"prompt", "answer"} & line.keys()


def test_log_content_adds_prompt_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    send_request(None, "POST", CHAT, json=chat_body(), log_requests=True, log_content=True)
    (line,) = logged(capsys)
    assert line["prompt"] == [{"role": "user", "content": "hi"}]
    assert line["answer"] == "Hello"


def test_errors_are_logged_with_their_code(capsys: pytest.CaptureFixture[str]) -> None:
    body = chat_body(model="unknown")
    send_request(None, "POST", CHAT, json=body, log_requests=True)
    failing = FakeEngine(fail=EngineFailedError("broken"))
    send_request(failing, "POST", CHAT, json=chat_body(stream=True), log_requests=True)
    unknown, broken = logged(capsys)
    assert (unknown["status"], unknown["error"]) == (404, "model_not_found")
    assert (broken["status"], broken["error"]) == (200, "server_error")


def test_requests_refused_by_middleware_are_logged_with_their_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    send_request(None, "GET", "/v1/models", log_requests=True, api_keys=("k",))
    large = {"json": chat_body(user="x" * 5000), "max_body_bytes": 4096}
    send_request(None, "POST", CHAT, log_requests=True, **large)
    no_key, too_large = logged(capsys)
    assert (no_key["status"], no_key["error"]) == (401, "invalid_api_key")
    assert (too_large["status"], too_large["error"]) == (413, "request_too_large")


def test_successful_probes_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert send_request(None, "GET", path, log_requests=True).status_code == 200
    assert logged(capsys) == []


def test_metrics_count_requests_tokens_and_engine_state() -> None:
    async def scrape() -> str:
        transport = httpx.ASGITransport(create_app(FakeEngine()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post(CHAT, json=chat_body())
            await client.post(CHAT, json=chat_body(stream=True))
            await client.post(CHAT, json=chat_body(model="unknown"))
            await client.get("/a/unique/path")
            return (await client.get("/metrics")).text

    lines = asyncio.run(scrape()).splitlines()
    assert f'llmctl_requests_total{{route="{CHAT}",status="200"}} 2.0' in lines
    assert f'llmctl_requests_total{{route="{CHAT}",status="404"}} 1.0' in lines
    assert 'llmctl_requests_total{route="",status="404"} 1.0' in lines
    assert 'llmctl_errors_total{code="model_not_found"} 1.0' in lines
    assert "llmctl_prompt_tokens_total 14.0" in lines
    assert "llmctl_completion_tokens_total 4.0" in lines
    assert "llmctl_time_to_first_token_seconds_count 2.0" in lines
    assert "llmctl_inter_token_seconds_count 4.0" in lines
    assert "llmctl_engine_up 1.0" in lines
    assert "llmctl_engine_last_step_age_seconds 0.0" in lines
    assert "llmctl_engine_idle_seconds 0.0" in lines
    assert "llmctl_batch_rows 0.0" in lines
