"""The `llmctl serve --estimate` command."""

import json
from pathlib import Path

import pytest

from tests.cli.process import error_lines, run_in_process
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model_without_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an invalid weights file, which fails when it is read."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    (folder / "model.safetensors").write_bytes(b"not weights")
    return folder


def test_plan_is_printed_without_reading_the_weights(model_without_weights: Path) -> None:
    done = run_in_process(
        "serve",
        "--estimate",
        "-m",
        str(model_without_weights),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[:5]] == [
        "weights, none",
        "KV cache",
        "activations",
        "reserve",
        "free, cpu",
    ]
    assert lines[0] == "weights, none\t137.4 KiB"
    # 2 layers of 2 heads of 8, keys and values, in float32; 16 rows of 256 tokens.
    assert lines[1] == "KV cache\t1 MiB"
    assert lines[5] == ("fits          context 256 tokens, 16 rows, KV for 4,096 tokens of 0.2 KiB")
    assert [line.split()[1] for line in lines[6:]] == ["none", "8bit", "4bit"]
    assert all("fits, context 256 tokens" in line for line in lines[6:])


def test_json_has_all_sizes_in_bytes(model_without_weights: Path) -> None:
    options = ["--context-length", "128", "--max-rows", "2", "--kv-quant", "8bit"]
    done = run_in_process(
        "serve",
        "--estimate",
        "--json",
        "-m",
        str(model_without_weights),
        "--free",
        "8GiB",
        *options,
    )
    report = json.loads(done.stdout)
    plan = report.pop("plan")
    assert report == {
        "model_id": "tiny",
        "device": "cuda",
        "dtype": "bfloat16",
        "quant": "none",
        "kv_quant": "8bit",
        "shortage": None,
        "hint": "",
    }
    assert plan["free_bytes"] == 8 * 2**30
    assert plan["reserve_bytes"] == 600 * 2**20
    # A head of 8 numbers and its scale of 4 bytes.
    assert plan["kv_bytes_per_token"] == 2 * 2 * 2 * 12
    assert plan["context_length"] == 128
    assert plan["max_rows"] == 2
    assert plan["kv_budget_tokens"] == 2 * 128
    assert plan["kv_budget_bytes"] == 2 * 128 * 96
    assert [other["quant"] for other in plan["alternatives"]] == ["none", "8bit", "4bit"]


def test_plan_that_does_not_fit_exits_1_with_a_hint(model_without_weights: Path) -> None:
    done = run_in_process(
        "serve",
        "--estimate",
        "-m",
        str(model_without_weights),
        "--device",
        "cpu",
        "--kv-memory",
        "1kB",
    )
    assert done.returncode == 1
    assert "--quant none  weights" in done.stdout
    assert "does not fit" in done.stdout
    error, hint = error_lines(done.stderr)
    assert "one row of 256 tokens" in error
    assert "--kv-memory gives it 1.0 KiB" in error
    assert hint == "hint: try --kv-memory 1MiB"


def test_catalogue_model_that_is_not_downloaded(tmp_path: Path) -> None:
    home = {"LLMCTL_HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = run_in_process(
        "serve", "--estimate", "-m", "qwen3-8b", "--quant", "4bit", "--free", "8GiB", **home
    )
    assert done.returncode == 0, done.stderr
    assert "weights, 4bit\t5.7 GiB" in done.stdout
    assert "activations" not in done.stdout
    assert "--quant 8bit  weights 8.8 GiB, does not fit" in done.stdout
    assert "--quant 4bit  weights 5.7 GiB, fits, context unknown" in done.stdout
    assert "unknown" in done.stderr
    by_hub_id = run_in_process(
        "serve", "--estimate", "-m", "Qwen/Qwen3-8B", "--free", "8GiB", **home
    )
    assert by_hub_id.returncode == 1
    assert by_hub_id.stdout.startswith("weights, none\t15.3 GiB")
    assert error_lines(by_hub_id.stderr)[-1] == "hint: try --quant 4bit"


def test_unknown_model_is_an_error(tmp_path: Path) -> None:
    home = {"LLMCTL_HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = run_in_process("serve", "--estimate", "-m", "owner/name", **home)
    assert done.returncode == 1
    error, hint = error_lines(done.stderr)
    assert "owner/name is not on this machine" in error
    assert "llmctl models pull owner/name" in hint


@pytest.mark.parametrize(
    ("words", "report"),
    [
        (["--free", "8GiB"], "--estimate"),
        (["--json"], "--estimate"),
        (["--estimate", "--free", "lots"], "'lots' is not a size"),
        (["--estimate", "--kv-memory", "0"], "kv_bytes is 0"),
        (["--context-length", "0"], "--context-length is 0"),
        (["--kv-quant", "2bit"], "2bit"),
    ],
)
def test_invalid_options_are_usage_errors(words: list[str], report: str) -> None:
    done = run_in_process("serve", *words)
    assert done.returncode == 2
    assert report in "\n".join(error_lines(done.stderr))


@pytest.mark.real_model
def test_default_model_fits_a_small_gpu_with_its_full_context() -> None:
    done = run_in_process("serve", "--estimate", "--json", "--free", "2GiB")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["weights_bytes"] == 2 * 134_515_008
    assert plan["kv_bytes_per_token"] == 23_040
    assert plan["context_length"] == 8192
