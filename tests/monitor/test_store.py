"""Address, creation and upgrade of the tracking store."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.monitor.store import EXPERIMENT, TrackingStore, open_store, store_uri
from llmctl.types import Progress
from tests.monitor.conftest import Opener


def test_the_option_has_priority_over_the_variable_and_the_default_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_uri() == f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert store_uri() == "http://tracking.example:5000"
    monkeypatch.chdir(home)
    assert store_uri("sqlite:///mine.db") == f"sqlite:///{home}/mine.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite:///:memory:", "runs"])
def test_an_invalid_address_is_rejected_with_its_origin(
    uri: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.is_dir()
    with pytest.raises(ConfigError, match="--tracking-uri"):
        store_uri(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        store_uri()


@pytest.mark.slow
def test_two_processes_create_and_use_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "new"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-m", "tests.monitor.child", "short"]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    ends = [child.communicate(timeout=300) for child in children]
    assert [error for _, error in ends] == ["", ""]
    store = open_store(store_uri())
    for run_id in (output.strip() for output, _ in ends):
        assert store.client.get_run(run_id).info.status == "FINISHED"
        assert len(store.client.get_metric_history(run_id, "train/loss")) == 100
    assert (tmp_path / "new/mlflow.db").exists()
    assert list((tmp_path / "new").glob(".mlflow-*")) == []


@pytest.mark.slow
def test_creation_is_reported_once_and_uses_wal_mode(tmp_path: Path, home: Path) -> None:
    reports: list[Progress] = []
    uri = store_uri(f"sqlite:///{tmp_path / 'other' / 'tracking.db'}")
    open_store(uri, reports.append)
    open_store(uri, reports.append)
    assert [report.stage for report in reports] == ["preparing the tracking store (once)"]
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_deleted_experiment_is_restored(store: TrackingStore) -> None:
    store.client.delete_experiment(store.experiment_id)
    again = open_store(store.uri)
    assert again.experiment_id == store.experiment_id
    found = store.client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    assert found.lifecycle_stage == "active"


def test_a_store_of_an_older_mlflow_opens_with_its_runs(home: Path, store: TrackingStore) -> None:
    run = store.client.create_run(store.experiment_id, run_name="old")
    upgraded = open_store(f"sqlite:///{older_copy(home)}")
    assert upgraded.client.get_run(run.info.run_id).info.run_name == "old"


@pytest.mark.slow
def test_a_store_of_a_newer_mlflow_is_rejected_and_the_work_continues(
    home: Path, begin: Opener, warnings: list[str]
) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '000000000000'")
        connection.commit()
    tracker = begin()
    tracker.log_metrics({"loss": 1.0})
    tracker.end("finished")
    assert "another MLflow" in warnings[0]
    assert "wait in" in warnings[1]


def older_copy(home: Path) -> Path:
    """Copy the store and revert the last migration of MLflow."""
    from alembic import command
    from alembic.config import Config
    from mlflow.store import db_migrations

    file = home / "old.db"
    with closing(sqlite3.connect(home / "mlflow.db")) as now, closing(sqlite3.connect(file)) as old:
        now.backup(old)
    folder = Path(next(iter(db_migrations.__path__)))
    config = Config(folder / "alembic.ini")
    config.set_main_option("script_location", str(folder))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{file}")
    command.downgrade(config, "-1")
    return file
