"""Reading of runs, directly and through MLflow, and their selection, order and lineage."""

import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.read.client import ClientRunReader
from llmctl.monitor.read.lineage import Lineage, LineageNode
from llmctl.monitor.read.query import RunFilter, best_run, metric_direction, parse_time, sort_runs
from llmctl.monitor.read.record import RunReader
from llmctl.monitor.read.runs import find_run, open_runs
from llmctl.monitor.read.sqlite import KNOWN_SCHEMAS, SqliteRunReader
from llmctl.monitor.store import store_uri
from llmctl.monitor.write.liveness import DIED_ERROR
from llmctl.types import TAG_PROCESS, DatasetUse, MetricPoint, RunRecord
from tests.monitor.tracking_history import TrackingHistory, empty_home, start_tracker


@pytest.fixture
def runs(tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    tracking_history.enter(monkeypatch)
    with open_runs() as store:
        return store.runs()


def run(run_id: str, name: str = "", **fields: object) -> RunRecord:
    known = {"kind": "finetune", "model": "m", "status": "finished", "started": 0.0} | fields
    return RunRecord(run_id=run_id, name=name or f"run-{run_id}", **known)  # type: ignore[arg-type]


def test_the_direct_reader_and_the_client_return_the_same(
    tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking_history.enter(monkeypatch)
    direct = SqliteRunReader.open(tracking_history.home / "mlflow.db")
    assert direct is not None
    through_client = ClientRunReader(store_uri())
    with closing(direct):
        ours, theirs = direct.runs(), through_client.runs()
        assert [repr(run) for run in ours] == [repr(run) for run in theirs]
        for run_id in tracking_history.ids.values():
            assert repr(direct.curves(run_id)) == repr(through_client.curves(run_id))
            assert direct.count_traces(run_id) == through_client.count_traces(run_id)
        assert direct.count_traces(tracking_history.ids["serve"]) == 3


def test_a_record_holds_all_logged_values(
    runs: list[RunRecord], tracking_history: TrackingHistory
) -> None:
    fast = find_run(runs, tracking_history.ids["fast"])
    assert (fast.name, fast.kind, fast.model) == ("微调-fast", "finetune", "smollm2-135m")
    assert (fast.status, fast.error, fast.key_metric) == ("finished", "", "eval/loss")
    assert fast.params == {"batch": "8", "lora.rank": "16", "lr": "0.0001"}
    assert fast.metrics["eval/loss"] == pytest.approx(1.4)
    assert fast.datasets == (
        DatasetUse("客服.clean.jsonl", "b" * 36, "training", "/data/客服.clean.jsonl", 1100),
    )
    assert fast.duration_s is not None
    assert 0 <= fast.duration_s < 60


def test_nan_and_infinity_are_read_as_logged(
    tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking_history.enter(monkeypatch)
    with open_runs() as store:
        points = store.curves(tracking_history.ids["broken"])["train/loss"]
    assert [point.step for point in points] == [0, 1, 2]
    assert points[0] == MetricPoint(0, points[0].time, 2.0)
    assert math.isnan(points[1].value)
    assert points[2].value == math.inf


def test_a_missing_store_has_no_runs_and_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open_runs() as store:
        assert type(store) is RunReader
        assert store.runs() == []
    assert not (tmp_path / "home").exists()


def test_a_file_that_is_not_a_store_is_an_error_and_unchanged(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.db", tmp_path / "other.db"
    text.write_text("this is not a database, although it is long " * 20)
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name)")
    for file in (text, other):
        before = file.read_bytes()
        with (
            pytest.raises(LlmctlError, match=file.name),
            open_runs(f"sqlite:///{file.as_posix()}"),
        ):
            pass
        assert file.read_bytes() == before


def test_an_unknown_schema_is_left_to_mlflow(
    tracking_history: TrackingHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = empty_home(tracking_history, tmp_path / "home", monkeypatch)
    with closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        ((version,),) = connection.execute("SELECT * FROM alembic_version").fetchall()
        assert version in KNOWN_SCHEMAS
        connection.execute("UPDATE alembic_version SET version_num = 'of the future'")
    assert SqliteRunReader.open(home / "mlflow.db") is None


def test_reading_beside_a_writer_sees_committed_data_only(
    tracking_history: TrackingHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = empty_home(tracking_history, tmp_path / "home", monkeypatch)
    start_tracker("bench").end("finished")
    with closing(sqlite3.connect(home / "mlflow.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE runs SET name = 'half done'")
        with open_runs() as store:
            (seen,) = store.runs()
    assert seen.name.startswith("bench-")


@pytest.mark.slow
def test_a_run_of_a_dead_process_is_read_as_killed(
    tracking_history: TrackingHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_home(tracking_history, tmp_path / "home", monkeypatch)
    code = (
        "import os\n"
        "from tests.monitor.tracking_history import start_tracker\n"
        "tracker = start_tracker('serve')\n"
        "print(tracker.run_id, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    with open_runs() as store:
        (dead,) = store.runs()
    assert dead.run_id == done.stdout.strip(), done.stderr
    assert (dead.status, dead.error) == ("killed", DIED_ERROR)
    assert dead.ended is not None
    alive = start_tracker("serve")
    with open_runs() as store:
        assert find_run(store.runs(), str(alive.run_id)).status == "running"
    alive.end("finished")


def test_ids_names_and_prefixes_find_a_run() -> None:
    runs = [
        run("ab12", "微调-三"),
        run("ab34", "eval-b"),
        run("cd56", "eval-a", tags={TAG_PROCESS: ""}),
    ]
    assert find_run(runs, "cd").run_id == "cd56"
    assert find_run(runs, "AB12").run_id == "ab12"
    assert find_run(runs, "微调").run_id == "ab12"
    assert find_run(runs, "eval-a").run_id == "cd56"
    assert find_run(runs, "latest") is find_run(runs, "@") is runs[0]


def test_exact_matches_have_priority_over_prefixes_and_ids_over_names() -> None:
    runs = [run("aaa1", "base"), run("bbb2", "base-2"), run("base9", "other")]
    assert find_run(runs, "base").run_id == "aaa1"
    assert find_run(runs, "bas").run_id == "base9"


def test_an_ambiguous_reference_lists_the_runs() -> None:
    runs = [run(f"ab{number:02}", f"eval-{number}") for number in range(12)]
    with pytest.raises(ConfigError, match="12 runs") as caught:
        find_run(runs, "ab")
    lines = str(caught.value).splitlines()
    assert "ab00" in lines[1]
    assert "eval-0" in lines[1]
    assert lines[-1].strip() == "… and 2 more"


@pytest.mark.parametrize("reference", ["zz", "", " ", "latest"])
def test_a_reference_without_a_match_is_an_error(reference: str) -> None:
    with pytest.raises(LlmctlError, match="there is no run"):
        find_run([run("ab12")] if reference != "latest" else [], reference)


def test_lineage_spans_from_the_raw_data_to_the_server(
    runs: list[RunRecord], tracking_history: TrackingHistory
) -> None:
    lineage = Lineage(runs)
    ids = tracking_history.ids

    def outline(node: LineageNode) -> object:
        return {node.id if node.kind != "model" else "model": [*map(outline, node.branches)]}

    fine_tuned: object = {ids["slow"]: [{"model": []}]}
    used: object = {"model": [{ids["eval"]: []}, {ids["serve"]: []}]}
    assert outline(lineage.results(find_run(runs, ids["clean"]))) == {
        ids["clean"]: [{"b" * 36: [fine_tuned, {ids["fast"]: [used]}]}]
    }
    assert outline(lineage.sources(find_run(runs, ids["eval"]))) == {
        ids["eval"]: [
            {"c" * 36: []},
            {"model": [{ids["fast"]: [{"b" * 36: [{ids["clean"]: [{"a" * 36: []}]}]}]}]},
        ]
    }
    (model,) = lineage.results(find_run(runs, ids["fast"])).branches
    assert model.name == str(tracking_history.adapter)


def test_a_run_with_equal_input_and_output_is_not_its_own_source() -> None:
    same = (DatasetUse("d", "x", "source"), DatasetUse("d (output)", "x", "output"))
    first, second = run("a", datasets=same), run("b", datasets=same, started=1.0)
    lineage = Lineage([first, second])
    (data,) = lineage.sources(second).branches
    (before,) = data.branches
    assert (before.id, [(node.id, node.seen) for node in before.branches]) == ("a", [("x", True)])
    (data,) = lineage.results(first).branches
    assert [node.id for node in data.branches] == ["b"]


def test_child_runs_are_linked_to_their_parent() -> None:
    whole, part = run("a"), run("b", parent_run_id="a")
    lineage = Lineage([whole, part])
    assert [node.id for node in lineage.results(whole).branches] == ["b"]
    assert [node.id for node in lineage.sources(part).branches] == ["a"]
    (lost,) = Lineage([part]).sources(part).branches
    assert "not in this store" in lost.name


def test_runs_without_a_value_come_last_in_both_orders() -> None:
    runs = [
        run("a", metrics={"loss": 2.0}),
        run("b"),
        run("c", metrics={"loss": 1.0}),
        run("d", metrics={"loss": math.nan}),
    ]
    assert [one.run_id for one in sort_runs(runs, "loss")] == ["c", "a", "b", "d"]
    assert [one.run_id for one in sort_runs(runs, "-loss")] == ["a", "c", "b", "d"]
    with pytest.raises(ConfigError, match="los"):
        sort_runs(runs, "los")


def test_the_best_run_has_a_value() -> None:
    runs = [run("a", metrics={"l": math.nan}), run("b", metrics={"l": 2.0}), run("c")]
    runs.append(run("d", metrics={"l": 1.0}))
    assert best_run(runs, "l", "lower").run_id == "d"
    assert best_run(runs, "l", "higher").run_id == "b"
    with pytest.raises(LlmctlError, match="none of the 4 runs"):
        best_run(runs, "x", "lower")


def test_a_filter_requires_all_conditions() -> None:
    old = run("a", model="Qwen/Qwen3-4B", started=100.0)
    assert RunFilter(kind="finetune", model="qwen3", status="finished", since=100.0).admits(old)
    for other in (
        RunFilter(kind="eval"),
        RunFilter(model="llama"),
        RunFilter(status="failed"),
        RunFilter(since=101.0),
    ):
        assert not other.admits(old)


def test_a_time_is_a_duration_before_now_or_a_date() -> None:
    now = datetime(2026, 5, 31, 12)
    assert parse_time("7d", now) == datetime(2026, 5, 24, 12).timestamp()
    assert parse_time("1.5h", now) == datetime(2026, 5, 31, 10, 30).timestamp()
    assert parse_time("2026-05-30", now) == datetime(2026, 5, 30).timestamp()
    assert parse_time("2026-05-30T08:00:00+00:00", now) == 1_780_128_000
    for text in ("yesterday", "7", "7x", "", "999999999999w"):
        with pytest.raises(ConfigError, match="is not a time"):
            parse_time(text, now)


@pytest.mark.parametrize(
    ("metric", "side"),
    [
        ("train/loss", "lower"),
        ("eval/perplexity", "lower"),
        ("serve/ttft_p95_s", "lower"),
        ("serve/errors", "lower"),
        ("eval/runtime_s", "lower"),
        ("train/tokens_per_s", "higher"),
        ("serve/cached_share", "higher"),
        ("eval/ceval", "higher"),
        ("eval/some_new_suite", "higher"),
        ("train/learning_rate", None),
        ("train/grad_norm", None),
        ("serve/requests", None),
    ],
)
def test_the_name_of_a_metric_gives_its_direction(metric: str, side: str | None) -> None:
    assert metric_direction(metric) == side
