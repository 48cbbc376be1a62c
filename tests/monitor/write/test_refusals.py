"""No failure of the tracker stops the work, and one bad event does not hold up the others."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor import Tracker, open_tracker, tracked
from llmctl.monitor.read.runs import open_runs
from llmctl.monitor.store import TrackingStore, open_store, redact, store_uri
from llmctl.monitor.write.recovery import deliver_orphaned_spools
from llmctl.monitor.write.sanitize import KeyNames
from llmctl.monitor.write.spool import Spool, count_waiting_runs
from llmctl.types import DatasetRef, RequestTrace, RunStart
from tests.monitor.conftest import Opener

ODD = os.fsdecode(b"caf\xe9")
"""A file name that is not UTF-8."""


def refuse_metric(file: Path, name: str) -> None:
    """Make the store refuse a metric with an internal error, whenever it is written."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON metrics WHEN NEW.key = '{name}' "
            "BEGIN SELECT json('no JSON'); END"
        )


def test_a_metric_that_the_store_always_refuses_does_not_hold_up_others(
    home: Path, store: TrackingStore, begin: Opener, warnings: list[str]
) -> None:
    refuse_metric(home / "mlflow.db", "bad")
    tracker = begin()
    tracker.log_metrics({"loss": 1.0, "bad": 2.0, "eval": 3.0})
    tracker.end("finished")
    run = store.client.get_run(str(tracker.run_id))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0, "eval": 3.0})
    assert ["a metric was rejected" in text for text in warnings] == [True]
    assert "llmctl.probe" not in run.data.tags
    assert list((home / "tracking").iterdir()) == []


@pytest.mark.slow
def test_a_store_that_is_read_only_for_a_while_gets_everything(
    home: Path, store: TrackingStore, begin: Opener, warnings: list[str]
) -> None:
    file = home / "mlflow.db"
    tracker = begin()
    triggers = [
        f"CREATE TRIGGER refuse_{event}_{table} BEFORE {event} ON {table} "
        "BEGIN SELECT json('no JSON'); END"
        for event in ("INSERT", "UPDATE")
        for table in ("metrics", "tags", "params", "runs")
    ]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA busy_timeout = 10000")
        for statement in triggers:
            connection.execute(statement)
    for step in range(5):
        tracker.log_metrics({"loss": 1.0}, step=step)
        time.sleep(1)
    assert "does not answer" in warnings[0]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA busy_timeout = 10000")
        for statement in triggers:
            connection.execute(f"DROP TRIGGER {statement.split()[2]}")
    tracker.end("finished")
    assert len(store.client.get_metric_history(str(tracker.run_id), "loss")) == 5
    assert store.client.get_run(str(tracker.run_id)).info.status == "FINISHED"
    assert len(warnings) == 1


@pytest.mark.slow
def test_a_refused_metric_in_a_spool_does_not_hold_up_younger_spools(
    home: Path, empty_store: Path, begin: Opener
) -> None:
    (home / "other.db").write_bytes(b"no database" * 100)
    for metric in ("bad", "good"):
        tracker = begin(name=f"with {metric}", uri=f"sqlite:///{home / 'other.db'}")
        tracker.log_metrics({metric: 1.0, "loss": 2.0})
        tracker.end("finished")
    (home / "other.db").write_bytes(empty_store.read_bytes())
    refuse_metric(home / "other.db", "bad")
    rejected: list[str] = []
    there = open_store(f"sqlite:///{home / 'other.db'}")
    deliver_orphaned_spools(there, rejected.append)
    runs = there.client.search_runs([there.experiment_id])
    assert {run.info.run_name: run.data.metrics for run in runs} == {
        "with bad": {"loss": 2.0},
        "with good": {"good": 1.0, "loss": 2.0},
    }
    assert len(rejected) == 1
    assert list((home / "tracking").glob("*.jsonl")) == []


@pytest.mark.skipif(os.name != "posix", reason="paths are Unicode on Windows")
def test_names_and_paths_that_are_not_utf8_are_recorded(
    begin: Opener, store: TrackingStore, tmp_path: Path, warnings: list[str]
) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "report.md").write_text("text")
    (folder / "llmctl.json").write_text('{"run_id": null}')
    tracker = begin(model=f"/models/{ODD}", name=ODD, params={"output": folder, ODD: ODD})
    tracker.set_tags({"folder": str(folder)})
    tracker.log_dataset(DatasetRef(ODD, str(folder), "ab" * 32, 1), "training")
    tracker.log_text(f"error in {ODD}\ud800", "traceback.txt")
    tracker.log_artifact(folder / "report.md")
    tracker.log_artifact(folder, "copies")
    tracker.log_trace(RequestTrace("r", 1.8e9, 1.0, prompt="\ud83d", error=ODD))
    model_id = tracker.log_model(ODD, folder)
    tracker.complete_ids(folder / "llmctl.json")
    tracker.end("failed", f"cannot read {folder}")
    run = store.client.get_run(str(tracker.run_id))
    assert run.info.status == "FAILED"
    assert run.data.params["output"].endswith(r"caf\udce9")
    assert run.data.tags["llmctl.error"].endswith(r"caf\udce9")
    assert model_id is not None
    assert {file.path for file in store.client.list_artifacts(run.info.run_id)} >= {"report.md"}
    assert json.loads((folder / "llmctl.json").read_text()) == {"run_id": tracker.run_id}
    assert [text for text in warnings if "artifact" not in text] == []


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_no_method_of_the_tracker_raises(
    begin: Opener, store: TrackingStore, tmp_path: Path, warnings: list[str]
) -> None:
    bad = Unprintable()
    with tracked(begin()) as tracker:
        tracker.log_params({"bad": bad})
        tracker.log_metrics({bad: 1.0})  # type: ignore[dict-item]
        tracker.set_tags({"bad": bad})  # type: ignore[dict-item]
        tracker.log_artifact(tmp_path / "missing")
        tracker.log_text(bad, "a.txt")  # type: ignore[arg-type]
        tracker.log_dataset(None, "training")  # type: ignore[arg-type]
        tracker.log_model(bad, tmp_path)  # type: ignore[arg-type]
        tracker.use_model("no such model")
        tracker.log_trace(None)  # type: ignore[arg-type]
        tracker.complete_ids(tmp_path)
        tracker.log_metrics({"loss": 1.0})
    run = store.client.get_run(str(tracker.run_id))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert warnings


def test_a_tracker_without_a_writable_folder_does_not_stop_the_work(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "tracking").write_text("a file in place of the folder")
    warnings: list[str] = []
    tracker = open_tracker(RunStart("eval"), warn=warnings.append)
    tracker.log_metrics({"loss": 1.0})
    tracker.log_text("x", "a.txt")
    tracker.end("finished")
    assert tracker.run_id is not None
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    open_tracker(RunStart("eval"), warn=warnings.append).end("finished")
    assert any("MLFLOW_RUN_ID is ignored" in text for text in warnings)


@pytest.mark.slow
def test_the_ids_reach_the_files_of_a_run_when_it_is_delivered(
    home: Path, empty_store: Path, begin: Opener, tmp_path: Path
) -> None:
    store_file = home / "mlflow.db"
    store_file.write_bytes(b"no database" * 100)
    file = tmp_path / "llmctl.json"
    file.write_text('{"base": "b", "run_id": null, "model_id": null}')
    tracker = begin()
    assert tracker.run_id is None
    assert tracker.log_model("adapter", tmp_path) is None
    tracker.complete_ids(file)
    tracker.complete_ids(tmp_path / "moved away.json")
    tracker.end("finished")
    assert count_waiting_runs(store_uri()) == 1
    store_file.write_bytes(empty_store.read_bytes())
    with open_runs() as reader:
        (run,) = reader.runs()
    expected = {"base": "b", "run_id": run.run_id, "model_id": run.model_id}
    assert run.model_id is not None
    assert json.loads(file.read_text()) == expected
    assert count_waiting_runs(store_uri()) == 0


@pytest.mark.slow
def test_a_run_that_waits_is_listed_although_the_store_did_not_exist(
    home: Path, begin: Opener
) -> None:
    (home / "mlflow.db").write_bytes(b"no database" * 100)
    begin(name="early").end("finished")
    (home / "mlflow.db").unlink()
    with open_runs() as reader:
        assert [run.name for run in reader.runs()] == ["early"]


def test_names_that_become_equal_stay_different() -> None:
    names = KeyNames()
    first = names.assign(["exam/C", "exam/C#", "exam/C+", "loss"])
    assert (first["exam/C"], first["loss"]) == ("exam/C", "loss")
    assert len(set(first.values())) == 4
    assert all(key.startswith("exam/C") for name, key in first.items() if name != "loss")
    assert names.assign(["exam/C#"]) == {"exam/C#": first["exam/C#"]}
    assert names.assign(["lo*ss", "lo_ss"]) != {"lo*ss": "lo_ss", "lo_ss": "lo_ss"}
    long = ["x" * 300 + end for end in "ab"]
    assert len(set(names.assign(long).values())) == 2
    assert KeyNames().assign(["c (%)"]) == {"c (%)": "c ___"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/a", "https://me:***@host:5000/a"),
        ("postgresql+x://u:se/c@ret@h/db refused", "postgresql+x://u:***@h/db refused"),
        ("http://secret@host", "http://***@host"),
        ("mysql://h/db?user=a&password=secret&x=1", "mysql://h/db?user=a&password=***&x=1"),
        ("'http://:secret@h'", "'http://:***@h'"),
        ("http://host:5000/a b@c", "http://host:5000/a b@c"),
        ("sqlite:////home/a@b/x.db", "sqlite:////home/a@b/x.db"),
    ],
)
def test_passwords_in_addresses_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "uri",
    ["ftp://me:secret@host/x", "mysql+nothing://me:secret@host/db", "http://me:secret@127.0.0.1:9"],
)
def test_no_message_about_the_store_holds_its_password(uri: str, home: Path) -> None:
    assert home.is_dir()
    with pytest.raises(LlmctlError) as reading, open_runs(uri):
        pass
    assert "secret" not in f"{reading.value} {reading.value.hint}"
    warnings: list[str] = []
    if not uri.startswith("http"):
        with pytest.raises(ConfigError) as writing:
            open_tracker(RunStart("eval"), tracking_uri=uri, warn=warnings.append)
        assert "secret" not in f"{writing.value} {writing.value.hint}"
        return
    tracker = open_tracker(RunStart("eval"), tracking_uri=uri, warn=warnings.append)
    tracker.end("finished")
    assert warnings
    assert "secret" not in " ".join(warnings)


def test_a_missing_database_driver_is_one_error(home: Path) -> None:
    assert home.is_dir()
    with pytest.raises(ConfigError, match="needs the Python package") as error:
        open_runs("postgresql+pg8000://me:secret@host/db").__enter__()
    assert "pip install" in error.value.hint


def test_the_experiment_of_the_environment_is_used(
    home: Path, begin: Opener, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.is_dir()
    begin(name="before").end("finished")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    tracker = begin(name="after")
    tracker.end("finished")
    experiment = store.client.get_experiment_by_name("team")
    assert experiment is not None
    run = store.client.get_run(str(tracker.run_id))
    assert run.info.experiment_id == experiment.experiment_id
    with open_runs() as reader:
        assert {one.name for one in reader.runs()} == {"before", "after"}


def test_a_damaged_spool_is_left_alone(home: Path, store: TrackingStore, begin: Opener) -> None:
    spool = Spool.create(store.uri, RunStart("eval"), "a", 1)
    spool.abandon()
    spool.file.write_text("[1]\n")
    assert isinstance(begin(), Tracker)
    assert spool.file.exists()
    assert home.is_dir()


def purge_run(home: Path, run_id: str) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = '{run_id}'")


def damage_store(home: Path, _: str) -> None:
    (home / "mlflow.db").write_bytes(b"no database" * 2000)


def drop_tables(home: Path, _: str) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        for table in ("metrics", "tags", "params"):
            connection.execute(f"DROP TABLE {table}")


def remove_spools(home: Path, _: str) -> None:
    shutil.rmtree(home / "tracking")


def block_artifacts(home: Path, _: str) -> None:
    shutil.rmtree(home / "artifacts", ignore_errors=True)
    (home / "artifacts").write_text("a file in place of the folder")


def remove_all(home: Path, _: str) -> None:
    shutil.rmtree(home)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [purge_run, damage_store, drop_tables, remove_spools, block_artifacts, remove_all]
)
def test_no_damage_to_the_store_stops_the_work(
    damage: Callable[[Path, str], None], home: Path, begin: Opener, tmp_path: Path
) -> None:
    (tmp_path / "report.md").write_text("text")
    with tracked(begin()) as tracker:
        tracker.log_metrics({"loss": 2.0})
        damage(home, str(tracker.run_id))
        tracker.log_params({"lr": 0.1, "prompt": "x" * 9000})
        tracker.log_metrics({"loss": 1.0})
        tracker.log_artifact(tmp_path / "report.md")
        tracker.log_dataset(DatasetRef("d", "/d", "ab" * 32, 1), "training")
        tracker.log_trace(RequestTrace("r", 1.8e9, 1.0))
