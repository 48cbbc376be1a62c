"""The service of `llmctl runs` with a real store."""

import csv
import json
import math
import sqlite3
from pathlib import Path

import pytest

from llmctl.data.cleaning.settings import CleanSettings
from llmctl.data.digests import DatasetDigest
from llmctl.data.io.reader import read_examples
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.read.client import translated_store_errors
from llmctl.monitor.read.lineage import LineageNode
from llmctl.monitor.read.query import RunFilter
from llmctl.monitor.read.record import run_to_dict
from llmctl.monitor.store import TrackingStore, import_mlflow, open_store, store_uri
from llmctl.services import runs as service
from llmctl.services.data_clean import CleanRequest, clean
from llmctl.types import RequestTrace, RunRecord
from tests.monitor.tracking_history import TrackingHistory, empty_home, end_tracker, start_tracker

ANY = RunFilter()


@pytest.fixture
def history(tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch) -> TrackingHistory:
    tracking_history.enter(monkeypatch)
    return tracking_history


@pytest.fixture
def home(
    tracking_history: TrackingHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty store of the test's own."""
    return empty_home(tracking_history, tmp_path / "home", monkeypatch)


def names(**options: bool) -> set[str]:
    return {run.name for run in service.list_runs(ANY, **options)}  # type: ignore[arg-type]


def ignore(_: RunRecord) -> None:
    pass


def forbid(value: object) -> None:
    raise AssertionError(value)


@pytest.mark.slow
def test_show_returns_metrics_lineage_and_artifacts(history: TrackingHistory) -> None:
    details = service.show("微调-fast")
    (loss,) = [one for one in details.summaries if one.name == "train/loss"]
    assert (loss.first, loss.points) == (2.0, 10)
    assert loss.lowest == loss.last == pytest.approx(1 + math.exp(-4.5))
    assert loss.highest == 2.0
    assert [(file.path, file.bytes) for file in details.files] == [("config.yaml", 11)]
    assert [node.kind for node in details.results.branches] == ["model"]
    assert service.show(history.ids["serve"][:10]).traces == 3


@pytest.mark.parametrize("output", ["tr.clean.jsonl", "out/tr.jsonl"])
def test_data_unchanged_by_cleaning_is_linked_to_its_fine_tuning(
    home: Path, tmp_path: Path, output: str
) -> None:
    assert home.is_dir()
    raw, rows = tmp_path / "tr.jsonl", tmp_path / output
    answers = ["It is a city by the sea.", "Three trains go there every day.", "No, never."]
    raw.write_text(
        "".join(
            json.dumps({"prompt": f"Question {number}?", "completion": answer}) + "\n"
            for number, answer in enumerate(answers)
        )
    )
    rows.parent.mkdir(exist_ok=True)
    request = CleanRequest([str(raw)], CleanSettings(), ReadOptions())
    report, _ = clean(request, rows, track=True, warn=forbid)
    assert report.digest_before == report.digest_after
    trained = start_tracker("finetune", name="trained")
    digest = DatasetDigest()
    for example in read_examples(rows, on_row_error=forbid):
        digest.add(example)
    trained.log_dataset(digest.ref(rows), "training")
    end_tracker(trained)

    def outline(node: LineageNode) -> object:
        name = node.run.kind if node.run is not None else node.role
        return {name: [outline(branch) for branch in node.branches]}

    (cleaning,) = service.list_runs(RunFilter(kind="clean"))
    assert outline(service.show(cleaning.run_id).results) == {
        "clean": [{"output": [{"finetune": []}]}]
    }
    assert outline(service.show("trained").sources) == {
        "finetune": [{"training": [{"clean": [{"source": []}]}]}]
    }


def test_lowest_and_highest_ignore_nan(history: TrackingHistory) -> None:
    (loss,) = service.show(history.ids["broken"]).summaries
    assert (loss.first, loss.last, loss.lowest, loss.highest) == (2.0, math.inf, 2.0, math.inf)


def test_compare_separates_equal_parameters_and_finds_the_best_run(
    history: TrackingHistory,
) -> None:
    ids = history.ids
    comparison = service.compare([ids["slow"], ids["fast"], ids["eval"]])
    assert comparison.differing["lr"] == ("1e-05", "0.0001", None)
    assert comparison.differing["suite"] == (None, None, "ceval")
    pair = service.compare([ids["slow"], "微调-fast"])
    assert pair.equal == {"batch": "8", "lora.rank": "16"}
    rows = {row.name: row for row in pair.metrics}
    assert (rows["eval/loss"].best, rows["eval/loss"].worst) == (
        frozenset({1}),
        frozenset({0}),
    )
    assert rows["train/learning_rate"].better is None
    assert not rows["train/learning_rate"].best


@pytest.mark.parametrize("references", [["微调-fast"], ["微调-fast", "微调-fas"]])
def test_a_comparison_of_one_run_is_an_error(
    history: TrackingHistory, references: list[str]
) -> None:
    assert history.ids
    with pytest.raises(ConfigError, match="needs two runs"):
        service.compare(references)


@pytest.mark.slow
def test_plot_writes_the_metrics_of_several_runs(history: TrackingHistory, tmp_path: Path) -> None:
    file = tmp_path / "curves.png"
    drawn = service.plot([history.ids["slow"], "微调-fast"], [], file)
    assert drawn == ["train/learning_rate", "train/loss"]
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    # NaN leaves a gap.
    assert service.plot([history.ids["broken"]], ["train/loss"], file) == ["train/loss"]


@pytest.mark.parametrize(
    ("run", "metrics", "file", "reason"),
    [
        ("微调-fast", ["train/los"], "x.png", "train/los"),
        ("微调-fast", [], "x.jpg", "x.jpg"),
        ("微调-fast", [], "nowhere/x.png", "nowhere"),
        ("eval-", [], "x.png", "more than one point"),
    ],
)
def test_invalid_plots_are_errors(
    history: TrackingHistory, tmp_path: Path, run: str, metrics: list[str], file: str, reason: str
) -> None:
    assert history.ids
    with pytest.raises(LlmctlError, match=reason):
        service.plot([run], metrics, tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_best_derives_the_direction_from_the_name_of_the_metric(
    history: TrackingHistory,
) -> None:
    assert service.best("eval/loss", None, ANY)[0].run_id == history.ids["fast"]
    assert service.best("eval/loss", "higher", ANY)[0].run_id == history.ids["slow"]
    assert service.best("eval/ceval", None, ANY) == (service.resolve(["eval-"])[0], "higher")
    with pytest.raises(LlmctlError, match="eval/ceval"):
        service.best("eval/ceval", None, RunFilter(kind="finetune"))


def test_an_export_holds_every_point_and_every_artifact(
    history: TrackingHistory, tmp_path: Path
) -> None:
    target = tmp_path / "出口"
    service.export("微调-fast", target)
    assert (target / "artifacts/config.yaml").read_text() == "lr: 0.0001\n"
    whole = json.loads((target / "run.json").read_text(encoding="utf-8"))
    assert (whole["id"], whole["name"]) == (history.ids["fast"], "微调-fast")
    assert json.loads((target / "params.json").read_text()) == whole["params"]
    with (target / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 + 10 + 1
    assert rows[0].keys() == {"metric", "step", "time", "value"}
    assert [path.name for path in tmp_path.iterdir()] == ["出口"]


def test_an_export_does_not_overwrite(history: TrackingHistory, tmp_path: Path) -> None:
    assert history.ids
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        service.export("微调-fast", tmp_path / "mine")
    with pytest.raises(ConfigError, match="is not a folder"):
        service.export("微调-fast", tmp_path / "no/where")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


def test_nan_is_null_in_json(history: TrackingHistory) -> None:
    (broken,) = service.resolve([history.ids["broken"]])
    plain = run_to_dict(broken)
    assert plain["metrics"] == {"train/loss": None}
    json.dumps(plain, allow_nan=False)


def test_notes_and_tags_are_written_replaced_and_removed(home: Path) -> None:
    assert home.is_dir()
    run_id = end_tracker(start_tracker("bench", name="fast"))
    service.write_note("fast", "第一")
    service.write_note("fast", "keep this one")
    service.write_tags("fast", {"team": "客服", "用途": "demo"})
    (run,) = service.resolve([run_id])
    assert run.note == "keep this one"
    assert (run.tags["team"], run.tags["用途"]) == ("客服", "demo")
    service.write_note("fast", "")
    service.write_tags("fast", {"team": "", "never there": ""})
    (run,) = service.resolve([run_id])
    assert run.note == ""
    assert "team" not in run.tags
    with pytest.raises(ConfigError, match=r"llmctl\.kind"):
        service.write_tags("fast", {"llmctl.kind": "eval"})


def test_an_invalid_tag_is_an_error_and_no_tag_is_written(home: Path) -> None:
    assert home.is_dir()
    end_tracker(start_tracker("bench", name="fast"))
    for name, value in (("sp ace/ü@", "x"), ("a//b", "x"), ("n" * 251, "x"), ("long", "x" * 8001)):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            service.write_tags("fast", {"team": "a", name: value})
    with pytest.raises(ConfigError, match="8,001"):
        service.write_note("fast", "x" * 8001)
    assert "team" not in service.show("fast").run.tags
    service.write_tags("fast", {"sp ace/ü:1.0_-": "x" * 8000})
    assert service.show("fast").run.tags["sp ace/ü:1.0_-"] == "x" * 8000


def test_store_errors_are_translated_with_a_hint() -> None:
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    busy = "(sqlite3.OperationalError) database is locked\n[SQL: UPDATE …]"
    answers: list[tuple[Exception, type[LlmctlError], str, str]] = [
        (MlflowException(busy), LlmctlError, "locked", "another program writes it"),
        (sqlite3.OperationalError("database is locked"), LlmctlError, "locked", "another program"),
        (MlflowException("too odd", INVALID_PARAMETER_VALUE), ConfigError, "too odd", ""),
        (ConnectionRefusedError("refused"), LlmctlError, "refused", "start the server"),
    ]
    for answer, kind, message, hint in answers:
        with (
            pytest.raises(kind, match=message) as caught,
            translated_store_errors("sqlite:///x.db"),
        ):
            raise answer
        assert type(caught.value) is kind
        assert hint in caught.value.hint


def test_deleted_runs_can_be_restored(home: Path) -> None:
    assert home.is_dir()
    run_id = end_tracker(start_tracker("bench", name="one"))
    end_tracker(start_tracker("bench", name="two"))
    service.remove(service.resolve(["one"]), ignore)
    assert (names(), names(deleted=True)) == ({"two"}, {"one"})
    assert service.show("one").run.deleted
    for wants in (
        service.resolve,
        service.compare,
        lambda runs: service.plot(runs, [], home / "curves.png"),
    ):
        with pytest.raises(LlmctlError, match="no run 'one'") as caught:
            wants(["two", "one"])
        assert f"llmctl runs restore {run_id[:8]}" in caught.value.hint
    service.restore(["one"])
    assert (names(), names(deleted=True)) == ({"one", "two"}, set())
    with pytest.raises(LlmctlError, match="no run 'one': the trash is empty") as caught:
        service.restore(["one"])
    assert caught.value.hint == "one is not in the trash"
    with pytest.raises(LlmctlError, match=r"no run 'nope'$"):
        service.show("nope")


def test_a_running_run_is_not_removed(home: Path) -> None:
    assert home.is_dir()
    running = start_tracker("serve", name="running")
    with pytest.raises(ConfigError, match="still running"):
        service.remove(service.resolve(["running"]), ignore, purge=True)
    end_tracker(running)


@pytest.mark.slow
def test_purge_deletes_everything_except_the_adapter(home: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    doomed, other = (
        start_tracker("finetune", name="doomed"),
        start_tracker("finetune", name="other"),
    )
    for tracker in (doomed, other):
        tracker.log_metrics({"train/loss": 1.0})
        tracker.log_text("x", "notes/file.txt")
        assert tracker.log_model("adapter", adapter) is not None
        tracker.log_trace(RequestTrace(f"c-{tracker.run_id}", 1_800_000_000.0, 1.0))
        end_tracker(tracker)
    trashed = end_tracker(start_tracker("finetune", name="trashed before"))
    service.remove(service.resolve(["trashed"]), ignore)

    removed: list[str] = []
    service.remove(
        service.resolve(["doomed", trashed], deleted=None),
        lambda run: removed.append(run.name),
        purge=True,
    )
    assert removed == ["doomed", "trashed before"]
    assert (names(), names(deleted=True)) == ({"other"}, set())
    assert [path.name for path in (home / "artifacts").iterdir()] == [other.run_id]
    assert (adapter / "adapter_config.json").is_file()
    store = open_store(store_uri())
    assert _models_and_traces(store) == ([other.run_id], [other.run_id])


def _models_and_traces(store: TrackingStore) -> tuple[list[object], list[object]]:
    models = store.client.search_logged_models([store.experiment_id])
    traces = store.client.search_traces(locations=[store.experiment_id], include_spans=False)
    return (
        [model.source_run_id for model in models],
        [trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces],
    )
