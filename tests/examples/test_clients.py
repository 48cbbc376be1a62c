"""The example clients as scripts, against a real server with a tiny model."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import ModelSpec
from tests.server.servers import running_server
from tests.tiny import save_tiny_model

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_tiny_model(
        tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048
    )
    with HFRunner(ModelSpec(str(folder), device="cpu")) as engine:
        engine.load()
        with running_server(engine) as url:
            yield url


def run(script: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), f"{url}/v1"],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openai_client_example(url: str) -> None:
    printed = run("openai_client.py", url)
    assert "tokens in" in printed
    assert "'country': " in printed
    assert "the model calls get_weather with" in printed
    assert len([line for line in printed.splitlines() if line.startswith("- ")]) == 3


@pytest.mark.slow
def test_langchain_example(url: str) -> None:
    pytest.importorskip("langchain_openai")
    printed = run("langchain_chat.py", url)
    assert printed.count("batch:") == 2
    assert "structured: city=" in printed
    assert "tool: get_weather" in printed
