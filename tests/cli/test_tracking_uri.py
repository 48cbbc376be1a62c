"""The address of the tracking store, checked before any work by every command that takes it."""

import json
from pathlib import Path

import pytest

from tests.cli.process import error_lines, run_in_process
from tests.evaluation.benchmark_files import write_custom_benchmark

ADDRESSES = {
    "ftp://host/runs": "--tracking-uri 'ftp://host/runs' is not a tracking store",
    "runs": "--tracking-uri 'runs' is not a tracking store",
    "http://:5000": "http://:5000 is not the address of a tracking store: it has no host",
    "http://host:port": "http://host:port is not the address of a tracking store: Port could not",
    "postgresql+pg8000://me:secret@host/db": "needs the Python package pg8000",
}


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[str]]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    out, model = str(tmp_path / "out"), ["--model", str(tmp_path / "no-model")]
    benchmark = str(write_custom_benchmark(tmp_path))
    return {
        "eval": ["eval", "--dataset", benchmark, "--output", out, *model],
        "finetune": ["finetune", "-d", str(rows), "-o", out, *model],
        "serve": ["serve", "--track", "--port", "0", *model],
        "runs": ["runs", "list"],
    }


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("command", ["eval", "finetune", "serve", "runs"])
def test_a_wrong_address_is_refused_before_the_model_is_looked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commands: dict[str, list[str]],
    command: str,
    address: str,
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "home"))
    done = run_in_process(*commands[command], "--tracking-uri", address)
    lines = error_lines(done.stderr)
    assert done.returncode == 2
    assert ADDRESSES[address] in " ".join(lines), lines
    assert "secret" not in done.stderr
    assert lines[-1].startswith("hint: ")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home").exists()
    if command in ("eval", "finetune"):  # without tracking the address does not matter
        done = run_in_process(*commands[command], "--tracking-uri", address, "--no-track")
        assert "no-model" in done.stderr


def test_the_variable_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: dict[str, list[str]]
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://host/runs")
    done = run_in_process(*commands["eval"])
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_URI 'ftp://host/runs' is not a tracking store" in done.stderr
