"""The `llmctl serve` command in another process, with the OpenAI client."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.cli.process import RunningCommand, error_lines, run_process

EXAMPLE = Path(__file__).parents[2] / "examples/openai_client.py"


class Server:
    """`llmctl serve` in another process; `url` is the address that it prints."""

    def __init__(self, *words: str) -> None:
        self.process = RunningCommand("serve", "--port", "0", *words)
        self.output = ""
        for line in self.process.stderr:
            self.output += line
            if found := re.search(r"http://\S+/v1", line):
                self.url = found.group()
                return
        raise AssertionError(self.output)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)

    def stop(self) -> int:
        with self.process as process:
            process.send_signal(signal.SIGTERM)
            return process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--device", "cpu", "--dtype", "float32")
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.real_model
def test_openai_client_with_the_real_model(server: Server) -> None:
    client = server.client()
    assert client.models.list().data[0].id == "smollm2-135m"
    question: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "What is the capital of France?"}
    ]
    whole = client.chat.completions.create(
        model="smollm2-135m", messages=question, temperature=0, max_tokens=24
    )
    text = whole.choices[0].message.content
    assert text is not None
    assert "Paris" in text
    stream = client.chat.completions.create(
        model="smollm2-135m",
        messages=question,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    # The second request finds the prompt in the prefix cache.
    counted = chunks[-1].usage
    assert counted is not None
    assert whole.usage is not None
    assert counted.total_tokens == whole.usage.total_tokens
    assert counted.prompt_tokens_details is not None
    assert counted.prompt_tokens_details.cached_tokens == counted.prompt_tokens - 1


@pytest.mark.real_model
def test_invalid_requests_raise_the_errors_of_the_client(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "word " * 9000}]
        )
    assert long.value.code == "context_length_exceeded"


@pytest.mark.real_model
def test_reply_follows_the_json_schema(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"enum": ["France", "Spain"]}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    reply = server.client().chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Where is Paris? Answer in JSON."}],
        temperature=0,
        max_tokens=80,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema, "strict": True},
        },
    )
    place = json.loads(reply.choices[0].message.content or "")
    assert set(place) == {"city", "country"}
    assert place["country"] in ("France", "Spain")
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.slow
@pytest.mark.real_model
def test_example_client_runs(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), server.url], capture_output=True, text=True, check=True
    )
    assert "Paris" in done.stdout


@pytest.mark.slow
def test_allowed_hosts_come_from_the_variable_and_sigterm_exits_with_0(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_ALLOWED_HOST", "llm.example.com *.home.arpa")
    server = Server("-m", str(tiny_folder), "--device", "cpu")
    hosts = {"llm.example.com": 200, "a.home.arpa": 200, "evil.example": 403}
    for host, status in hosts.items():
        reply = httpx.get(f"{server.url}/models", headers={"Host": host})
        assert reply.status_code == status
    assert server.stop() == 0


def test_port_in_use_is_an_error_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_process("serve", "--port", port, "-m", "smollm2-135m")
    assert done.returncode == 2
    error, hint = error_lines(done.stderr)
    assert port in error
    assert "--port" in hint
