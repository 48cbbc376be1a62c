import re
import tomllib
from pathlib import Path

import pytest

import llmctl
from llmctl.engine.base import (
    SupportsAdapters,
    SupportsEmbed,
    SupportsModelList,
    SupportsScore,
    SupportsTokenize,
    require,
)
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.openai.client import OpenAIClient
from llmctl.engine.registry import create_engine
from llmctl.errors import ConfigError, MissingDependencyError, UnsupportedError
from llmctl.types import ApiEndpoint, ModelSpec

SPEC = ModelSpec("some-model")
SERVER = ApiEndpoint("http://127.0.0.1:9")


def test_the_backend_follows_from_what_is_given() -> None:
    assert isinstance(create_engine(SPEC), HFRunner)
    assert isinstance(create_engine(SERVER), OpenAIClient)


@pytest.mark.parametrize(
    ("model", "backend", "message"),
    [
        (SPEC, "vllm", "unknown backend 'vllm'"),
        (SPEC, "openai", "needs the URL of a server"),
        (SERVER, "hf", "cannot use a server"),
    ],
)
def test_a_backend_that_does_not_fit_is_rejected(
    model: ModelSpec | ApiEndpoint, backend: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        create_engine(model, backend)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    backends = {"hf": "tests.engine.backend_without_package:Engine"}
    with pytest.raises(MissingDependencyError, match="package package_that_is_absent") as caught:
        create_engine(SPEC, backends=backends)
    assert caught.value.hint == "pip install 'llmctl'"


def test_a_module_of_llmctl_that_is_missing_is_not_reported_as_a_package() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"llmctl\.engine\.absent"):
        create_engine(SPEC, backends={"hf": "llmctl.engine.absent:Engine"})


@pytest.mark.parametrize(
    ("capability", "action"),
    [
        (SupportsTokenize, "tokenise text"),
        (SupportsScore, "score text"),
        (SupportsEmbed, "embed text"),
        (SupportsAdapters, "load or unload adapters"),
    ],
)
def test_a_backend_without_a_capability_is_rejected_in_one_way(
    capability: type[object], action: str
) -> None:
    runner, client = HFRunner(SPEC), OpenAIClient(SERVER)
    assert require(runner, capability) is runner
    with pytest.raises(UnsupportedError, match=f"cannot {action}") as caught:
        require(client, capability, param="input")
    assert caught.value.param == "input"


def test_only_the_client_of_a_server_lists_models() -> None:
    assert isinstance(OpenAIClient(SERVER), SupportsModelList)
    assert not isinstance(HFRunner(SPEC), SupportsModelList)


def test_every_extra_that_a_message_names_exists() -> None:
    package = Path(llmctl.__file__).parent
    project = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]
    pattern = re.compile(r'MissingDependencyError\(.*extra="(\w+)"\)')
    named = {
        extra
        for file in package.rglob("*.py")
        for extra in pattern.findall(file.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= set(project["optional-dependencies"])
