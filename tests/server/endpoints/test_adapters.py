"""`/v1/adapters`, and adapters as models: given at start or loaded at run time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import ModelSpec
from tests.adapters import save_adapter
from tests.server.servers import CHAT, error_body, running_server, send_request


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    home = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two"), start=1):
        save_adapter(home / name, tiny_folder, seed=seed)
    save_adapter(home.parent / "outside", tiny_folder, seed=5)
    (home / "empty").mkdir()
    return home


@pytest.fixture(scope="module")
def url(home: Path, tiny_folder: Path) -> Iterator[str]:
    with HFRunner(ModelSpec(str(tiny_folder), device="cpu", dtype="float32")) as engine:
        engine.load()
        engine.load_adapter("first", str(home / "one"))
        with running_server(engine, adapter_dir=str(home), served_names=("alias",)) as url:
            yield url


def chat_with(url: str, model: str) -> httpx.Response:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 12,
        "ignore_eos": True,
    }
    return httpx.post(url + CHAT, json=body)


def names(url: str) -> list[str]:
    return [model["id"] for model in httpx.get(url + "/v1/models").json()["data"]]


def test_an_adapter_is_served_under_every_name_of_its_base(url: str) -> None:
    base = names(url)[0]
    assert names(url) == [base, "alias", f"{base}:first", "alias:first"]
    replies = [
        chat_with(url, name).json()["choices"][0]["message"]["content"]
        for name in (base, f"{base}:first", "alias:first")
    ]
    assert replies[0] != replies[1] == replies[2]
    assert chat_with(url, f"{base}:unknown").status_code == 404
    assert httpx.get(f"{url}/v1/models/alias:first").json()["id"] == "alias:first"


def test_adapters_are_loaded_and_unloaded_at_run_time(url: str) -> None:
    listed = httpx.get(url + "/v1/adapters").json()
    assert [a["name"] for a in listed["data"]] == ["first"]
    assert listed["available"] == ["one", "two"]
    loaded = httpx.post(url + "/v1/adapters", json={"name": "two"}).json()
    assert "alias:two" in loaded["models"]
    assert chat_with(url, "alias:two").status_code == 200
    again = httpx.post(url + "/v1/adapters", json={"name": "two"})
    assert again.status_code == 400
    assert "already loaded" in error_body(again)["message"]
    assert httpx.delete(url + "/v1/adapters/two").json()["deleted"] is True
    assert chat_with(url, "alias:two").status_code == 404
    assert httpx.delete(url + "/v1/adapters/two").status_code == 404


@pytest.mark.parametrize("name", ["../outside", "/etc", "empty", "one/../one", "", ".."])
def test_a_name_is_never_used_as_a_path(name: str, url: str) -> None:
    reply = httpx.post(url + "/v1/adapters", json={"name": name})
    assert reply.status_code == 404
    assert error_body(reply)["code"] == "model_not_found"
    assert "adapter_config" not in reply.text


def test_loading_requires_adapter_dir(tiny: HFRunner) -> None:
    reply = send_request(tiny, "POST", "/v1/adapters", json={"name": "one"})
    assert reply.status_code == 400
    assert error_body(reply)["code"] == "unsupported_parameter"
