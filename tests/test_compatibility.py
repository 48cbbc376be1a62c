"""Files written by llmctl 0.1.0, before its modules and classes were renamed, are still read.

`fixtures/state-0.1.0.tar.xz` holds what that version left on disk: a tracking store with two
fine-tuning runs (one stopped by Ctrl-C) and two evaluations, their output folders, a conversation,
the manifest of a stored model, and the spool of a killed server. It was written below
`/srv/llmctl`; the fixture moves it by replacing that path.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from llmctl.monitor import open_tracker, tracked
from llmctl.types import RunStart
from tests.cli.process import run_in_process

ARCHIVE = Path(__file__).parent / "fixtures" / "state-0.1.0.tar.xz"
WRITTEN_BELOW = "/srv/llmctl"
SPOOLED_TO = f"sqlite:///{WRITTEN_BELOW}/home/mlflow.db"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked state, moved to a temporary folder; holds `home/` and `work/`."""
    root = tmp_path_factory.mktemp("state")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    state = root / "llmctl"
    for file in state.rglob("*"):
        if file.suffix in {".json", ".jsonl", ".md"}:
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(WRITTEN_BELOW, str(state)), encoding="utf-8")
    _move_database(state / "home" / "mlflow.db", state)
    for spool in (state / "home" / "tracking").iterdir():
        # A writer on another host counts as dead once its file has not changed for some time.
        os.utime(spool, (1_700_000_000, 1_700_000_000))
        mark, rest = spool.name.split("-", 1)
        assert mark == hashlib.sha256(SPOOLED_TO.encode()).hexdigest()[:12]
        uri = SPOOLED_TO.replace(WRITTEN_BELOW, str(state))
        spool.rename(spool.with_name(f"{hashlib.sha256(uri.encode()).hexdigest()[:12]}-{rest}"))
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(state / "work" / "tiny" / name, state / "home" / "models" / "tiny-stored")
    return state


def _move_database(file: Path, target: Path) -> None:
    with sqlite3.connect(file) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?) "
                        f"WHERE {column} LIKE ?",
                        (WRITTEN_BELOW, str(target), f"%{WRITTEN_BELOW}%"),
                    )
    connection.close()


@pytest.fixture(autouse=True)
def home(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(state / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(state / "work")


def llmctl(*words: str) -> str:
    """Run a command that must succeed; return what it printed."""
    done = run_in_process(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_listed_and_shown_with_their_lineage() -> None:
    runs = {run["name"]: run for run in json.loads(llmctl("runs", "list", "--json"))}
    stopped = runs["finetune-tiny-67d0bf"]
    assert (stopped["kind"], stopped["status"]) == ("finetune", "killed")
    evaluated = runs["eval-adapter-3ebd6e"]
    assert evaluated["metrics"]["eval/counting/answered"] == 8
    assert evaluated["params"]["counting.prompt_hash"] == "ded9fe5c776e"
    shown = llmctl("runs", "show", "eval-adapter-3ebd6e")
    assert "finetune-tiny-3679fb" in shown
    assert "counting" in llmctl("runs", "compare", "eval-tiny-69a2b4", "eval-adapter-3ebd6e")


def test_an_orphaned_spool_is_delivered_to_the_store() -> None:
    with tracked(open_tracker(RunStart("bench", model="tiny"), warn=pytest.fail)):
        pass
    listed = json.loads(llmctl("runs", "list", "--json"))
    delivered = next(run for run in listed if run["name"] == "serve-before")
    assert (delivered["kind"], delivered["status"]) == ("serve", "finished")
    assert delivered["params"]["port"] == "8000"
    assert delivered["metrics"]["ttft_p95"] == 0.25
    assert delivered["tags"]["llmctl.used_model_id"] == "m-22204ce360a54792a3f87c7a89a30184"


@pytest.mark.slow
def test_a_stopped_fine_tuning_is_resumed_and_a_finished_one_repeated(state: Path) -> None:
    llmctl("finetune", "--resume", "--output", "stopped")
    lock = json.loads((state / "work" / "stopped" / "run.lock.json").read_text())
    assert lock["config"]["max_steps"] == 60
    steps = json.loads(llmctl("runs", "show", "finetune-tiny-67d0bf", "--json"))
    assert steps["status"] == "finished"
    llmctl("finetune", "--from-run", "adapter", "--output", "repeated", "--no-track")
    losses = [
        [point["loss"] for point in json.loads(file.read_text())["log_history"] if "loss" in point]
        for name in ("adapter", "repeated")
        for file in [state / "work" / name / "checkpoint-4" / "trainer_state.json"]
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_adapter_is_merged_with_its_base(state: Path) -> None:
    llmctl("models", "merge", "adapter", "-o", "merged", "--dtype", "float32")
    assert (state / "work" / "merged" / "model.safetensors").is_file()


def test_a_stored_model_is_listed_with_its_origin() -> None:
    shown = llmctl("models", "show", "tiny-stored")
    assert "package-index" in shown
    assert "tiny==1.0" in shown


def test_results_of_an_evaluation_are_shown_compared_and_resumed() -> None:
    assert "3+3=?" in llmctl("eval", "show", "eval-base")
    assert "counting" in llmctl("eval", "compare", "eval-base", "eval-adapter")
    assert "counting" in llmctl("eval", "report", "eval-base", "eval-adapter")
    again = run_in_process(
        *("eval", "--dataset", "counting.csv", "--model", "tiny", "--output", "eval-base"),
        *("--device", "cpu", "--dtype", "float32", "--no-track", "--resume"),
    )
    assert again.returncode == 0, again.stderr
    assert "0/8" in again.stdout


def test_a_conversation_is_listed_and_read() -> None:
    assert "What is 1 + 2?" in llmctl("chat", "--list")
