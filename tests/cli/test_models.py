"""The `llmctl models` commands, and `chat` and `serve`, on the folder of an adapter."""

import json
from pathlib import Path

import pytest

from tests.adapters import save_trained_adapter
from tests.cli.process import error_lines, run_in_process
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    base = save_tiny_model(folder / "tiny")
    return save_trained_adapter(
        folder / "checkpoints" / "v1", base, strength=0.1, target_modules=["q_proj"]
    )


def test_chat_loads_an_adapter_folder(adapter: Path) -> None:
    done = run_in_process(
        "chat", "-m", str(adapter), "--device", "cpu", "--max-tokens", "4", "hello"
    )
    assert done.returncode == 0, done.stderr
    assert "loading v1 on cpu" in done.stderr


def test_estimate_of_an_adapter(adapter: Path) -> None:
    done = run_in_process("serve", "--estimate", "-m", str(adapter), "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_id"] == "v1"


def test_list_and_show_an_adapter_folder(adapter: Path) -> None:
    done = run_in_process("models", "list", str(adapter.parent))
    assert done.stdout.split("\t")[0] == str(adapter)
    done = run_in_process("models", "show", str(adapter))
    fields = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert fields["adapter"] == "lora, rank 4, alpha 8"
    assert fields["data"] == "manners.jsonl, 200 rows"
    assert fields["runs"].startswith("fused (layers of llama")
    shown = json.loads(run_in_process("models", "show", str(adapter), "--json").stdout)
    assert shown["adapter"]["run_id"] == "5eed"


@pytest.mark.slow
def test_merge_prints_the_verification(adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "bot"
    done = run_in_process("models", "merge", str(adapter), "-o", str(output), "--ollama")
    assert done.returncode == 0, done.stderr
    fields = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert fields["merged"].startswith(str(output))
    assert fields["layers"] == "2 changed"
    assert fields["logits"].startswith("largest difference ")
    assert "difference" in fields["loss"]
    assert (output / "Modelfile").is_file()
    again = run_in_process("models", "merge", str(adapter), "-o", str(output))
    assert again.returncode == 2
    assert error_lines(again.stderr)[0].endswith("is not empty")
    done = run_in_process(
        "models", "merge", str(adapter), "-o", str(output), "--overwrite", "--json"
    )
    assert json.loads(done.stdout)["comparison"]["effect"] > 0
