"""An unavailable store does not stop the work, and no event is lost."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from llmctl.monitor import Tracker
from llmctl.monitor.store import TrackingStore, open_store, store_uri
from llmctl.monitor.write.liveness import DIED_ERROR
from llmctl.types import TAG_ERROR, TAG_MODEL_ID, DatasetRef
from tests.monitor.conftest import Opener

DATA = DatasetRef("train.jsonl", "/data/train.jsonl", "ab" * 32, 100, "messages")


def work(tracker: Tracker, steps: int) -> None:
    """Log metrics as training does."""
    for step in range(steps):
        tracker.log_metrics({"loss": float(step)}, step=step)


def losses(store: TrackingStore, run_id: str | None) -> list[float]:
    assert run_id is not None
    return [point.value for point in store.client.get_metric_history(run_id, "loss")]


def wait_until(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < last, "timeout"
        time.sleep(0.05)


@pytest.fixture
def no_store(home: Path) -> Path:
    """`home` with a file that is not a database in place of the store."""
    (home / "mlflow.db").write_bytes(b"no database" * 100)
    return home


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock of the database in the block."""
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield
        holder.execute("ROLLBACK")


@pytest.mark.slow
def test_a_locked_store_loses_no_event_and_does_not_block(
    home: Path, store: TrackingStore, begin: Opener, warnings: list[str]
) -> None:
    tracker = begin()
    with locked(home / "mlflow.db"):
        work(tracker, 3000)
        tracker.log_dataset(DATA, "training")
        time.sleep(5)
        work(tracker, 10)
        assert losses(store, tracker.run_id) == []
    tracker.end("finished")
    assert len(losses(store, tracker.run_id)) == 3010
    run: Any = store.client.get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 1
    assert warnings == []


@pytest.mark.slow
def test_a_store_that_recovers_gets_all_events_after_one_warning(
    no_store: Path, empty_store: Path, begin: Opener, warnings: list[str]
) -> None:
    tracker = begin(params={"lr": 0.1})
    assert tracker.run_id is None
    work(tracker, 2000)
    tracker.log_text("kept", "notes/a.txt")
    assert len(warnings) == 1
    assert "not a database" in warnings[0]
    shutil.copy(empty_store, no_store / "again.db")
    os.replace(no_store / "again.db", no_store / "mlflow.db")
    wait_until(lambda: tracker.run_id is not None)
    tracker.end("finished")
    store = open_store(store_uri())
    assert len(losses(store, tracker.run_id)) == 2000
    run = store.client.get_run(str(tracker.run_id))
    assert run.data.params == {"lr": "0.1"}
    assert [file.path for file in store.client.list_artifacts(run.info.run_id)] == ["notes"]
    assert len(warnings) == 1
    assert list((no_store / "tracking").iterdir()) == []


@pytest.mark.slow
def test_the_spool_of_a_killed_process_is_delivered_by_the_next_run(
    no_store: Path, empty_store: Path, begin: Opener
) -> None:
    command = [sys.executable, "-m", "tests.monitor.child", "long"]

    def spooled() -> int:
        files = (no_store / "tracking").glob("*.jsonl")
        return sum(file.read_text().count("Point") for file in files)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        wait_until(lambda: spooled() > 0)
        child.kill()
    kept = spooled()
    shutil.copy(empty_store, no_store / "mlflow.db")
    begin("eval").end("finished")

    store = open_store(store_uri())
    runs = store.client.search_runs([store.experiment_id], "tags.`llmctl.kind` = 'finetune'")
    (run,) = runs
    assert run.info.status == "KILLED"
    assert run.data.tags[TAG_ERROR] == DIED_ERROR
    assert len(store.client.get_metric_history(run.info.run_id, "train/loss")) == kept
    assert list((no_store / "tracking").glob("*.jsonl")) == []


@pytest.mark.slow
def test_an_unreachable_server_gets_the_run_when_it_is_up(
    home: Path, empty_store: Path, tmp_path: Path, begin: Opener, warnings: list[str]
) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    tracker = begin(uri=url, name="while it was down")
    work(tracker, 2000)
    tracker.log_dataset(DATA, "training")
    tracker.log_text("kept", "notes.txt")
    assert tracker.log_model("adapter", tmp_path) is None
    tracker.end("finished")
    assert [("does not answer" in text, "wait in" in text) for text in warnings] == [
        (True, False),
        (False, True),
    ]
    assert sqlite3.connect(home / "mlflow.db").execute("SELECT count(*) FROM runs").fetchone() == (
        0,
    )

    shutil.copy(empty_store, tmp_path / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "files")]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=quiet, stderr=quiet
    )
    try:

        def up() -> bool:
            with suppress(OSError), urlopen(f"{url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
            return False

        wait_until(up)
        begin("eval", uri=url).end("finished")
        store = open_store(url)
        run: Any
        (run,) = store.client.search_runs([store.experiment_id], "tags.`llmctl.kind` = 'finetune'")
        assert (run.info.run_name, run.info.status) == ("while it was down", "FINISHED")
        assert len(losses(store, run.info.run_id)) == 2000
        assert len(run.inputs.dataset_inputs) == 1
        assert [file.path for file in store.client.list_artifacts(run.info.run_id)] == ["notes.txt"]
        assert run.data.tags[TAG_MODEL_ID] == run.outputs.model_outputs[0].model_id
        assert len(warnings) == 2
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
