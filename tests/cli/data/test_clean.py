"""The `llmctl data clean` command."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.process import RunningCommand, error_lines, run_in_process

ROWS = [
    {"instruction": "怎么写信？", "input": "", "output": "写信到 li.ming@qq.com \n"},
    {"instruction": "怎么写信？", "input": "", "output": "写信到  li.ming@qq.com"},
    {"instruction": "Say hello", "input": "", "output": "As an AI language model, I can\u200bnot."},
    {"instruction": "Nothing", "input": "", "output": ""},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


def test_clean_writes_rows_rejects_and_report(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.jsonl"
    done = run_in_process("data", "clean", str(source), "-o", str(out), "--redact")
    assert done.returncode == 0, done.stderr
    table = {line.split("\t")[0]: line.split("\t") for line in done.stdout.splitlines()}
    assert table["personal-data"][1:6] == ["change", "2", "2", "0", "50.0"]
    assert table["duplicates"][1:6] == ["remove", "1", "0", "1", "25.0"]
    assert table["unreadable"][1:6] == ["remove", "1", "0", "1", "25.0"]
    assert table["refusal"][1:6] == ["report", "1", "0", "0", "25.0"]
    assert table["rows"] == ["rows", "3", "2"]
    assert f"2 of 4 rows written to {out}" in done.stderr
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["output"] == "写信到 <EMAIL>"
    assert rows[1]["output"] == "As an AI language model, I cannot."
    assert (tmp_path / "clean.rejected.jsonl").is_file()
    assert json.loads((tmp_path / "clean.report.json").read_text())["changed"] == 3

    again = run_in_process("data", "clean", str(out), "-o", str(out))
    assert again.returncode == 2
    assert error_lines(again.stderr) == [
        f"error: {out} already exists",
        "hint: add --overwrite, or choose another name",
    ]


def test_dry_run_and_explain_write_nothing(source: Path, tmp_path: Path) -> None:
    dry = run_in_process("data", "clean", str(source), "--dry-run", "--json", "--strict")
    assert dry.returncode == 1
    report = json.loads(dry.stdout)
    assert report["output"] is None
    assert [rule["removed"] for rule in report["rules"] if rule["name"] == "duplicates"] == [1]
    explained = run_in_process(
        "data", "clean", str(source), "--explain", "1", "--only", "whitespace"
    )
    assert explained.returncode == 0, explained.stderr
    assert "whitespace\tchange\t' \\n' -> ''" in explained.stdout
    assert "refusal\toff\t-" in explained.stdout
    row = {"instruction": "Who?", "output": "He.", "by": "li.ming@qq.com"}
    source.write_text(json.dumps([row]))
    explained = run_in_process("data", "clean", str(source), "--explain", "1", "--redact")
    assert "-by: li.ming@qq.com\n+by: <EMAIL>" in explained.stdout
    assert explained.stderr.endswith("the row at 1: changed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["raw.json"]


def test_invalid_rules_are_reported_before_reading() -> None:
    done = run_in_process("data", "clean", "missing.jsonl", "--dry-run", "--rule", "refusl")
    assert done.returncode == 2
    assert "did you mean refusal?" in done.stderr
    assert error_lines(done.stderr)[-1].startswith("hint: ")
    done = run_in_process("data", "clean", "missing.jsonl")
    assert error_lines(done.stderr)[0] == "error: --output is required"


def test_list_rules_with_thresholds() -> None:
    done = run_in_process("data", "clean", "--list-rules")
    assert done.returncode == 0
    lines = {line.split("\t")[0]: line for line in done.stdout.splitlines()}
    assert "threshold (0.8)" in lines["near-duplicates"]
    assert "off: needs keep, such as keep=zh,en" in lines["language"]
    assert len(lines) >= 19


@pytest.mark.real_model
def test_lengths_use_the_tokenizer_of_the_model(source: Path) -> None:
    done = run_in_process(
        "data", "clean", str(source), "--dry-run", "--json", "--only", "length",
        "--set", "min-answer-tokens=100", "--model", "smollm2-135m",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (rule,) = report["rules"]
    assert rule["kinds"] == {"the answer too short": 3}
    assert report["before"]["tokens_per_row"]["max"] > 20


@pytest.mark.slow
def test_ctrl_c_leaves_no_files(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    line = json.dumps({"text": " ".join(f"word{n}" for n in range(300))}) + "\n"
    source.write_text(line * 30_000)
    words = ["data", "clean", str(source), "-o", str(tmp_path / "out.jsonl"), "--workers", "2"]
    # In its own process group, as in a shell: Ctrl-C reaches the workers too.
    with RunningCommand(*words, new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".llmctl-clean-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        code, _, stderr = process.communicate()
    assert code == 130, stderr
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
