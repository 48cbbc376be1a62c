"""The store holds everything that was logged."""

import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from llmctl.monitor import Tracker, open_tracker
from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.start import start_run as begin_run
from llmctl.types import (
    TAG_CHANGED_PREFIX,
    TAG_KIND,
    TAG_MODEL,
    TAG_MODEL_ID,
    TAG_PARENT,
    RequestTrace,
    RunStart,
)
from tests.monitor.conftest import Opener


def test_params_metrics_tags_and_texts_are_stored(
    home: Path, store: TrackingStore, begin: Opener, warnings: list[str]
) -> None:
    tracker = begin(
        params={"lora": {"r": 8, "dropout": None}, "packing": False}, tags={"who": "me"}
    )
    for step in range(3):
        tracker.log_metrics({"train/loss": 3.0 - step, "lr": 1e-4}, step=step)
    tracker.log_params({"seed": 0, "files": ["a.jsonl", Path("b.jsonl")]})
    tracker.log_text("a: 1\n", "config/run.yaml")
    tracker.end("finished")

    assert tracker.run_id is not None
    run = store.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "lora.r": "8",
        "packing": "false",
        "seed": "0",
        "files": '["a.jsonl", "b.jsonl"]',
    }
    assert run.data.tags["who"] == "me"
    assert (run.data.tags[TAG_KIND], run.data.tags[TAG_MODEL]) == ("finetune", "smollm2-135m")
    history = store.client.get_metric_history(tracker.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    files = Path(unquote(urlparse(run.info.artifact_uri).path))
    assert files.is_relative_to(home / "artifacts")
    assert (files / "config/run.yaml").read_text() == "a: 1\n"
    assert warnings == []
    assert list((home / "tracking").iterdir()) == []


def test_params_and_tags_are_in_the_store_when_the_tracker_is_open(
    begin: Opener, store: TrackingStore
) -> None:
    tracker = begin(params={"lr": 0.1}, tags={"who": "me"})
    data = store.client.get_run(str(tracker.run_id)).data
    assert (data.params, data.tags["who"]) == ({"lr": "0.1"}, "me")
    tracker.end("finished")


def test_names_are_unique_with_a_fixed_seed(begin: Opener, store: TrackingStore) -> None:
    import random

    names = set()
    for _ in range(3):
        random.seed(0)
        tracker = begin(model="Qwen/Qwen3-4B@main")
        tracker.end("finished")
        assert tracker.run_id is not None
        names.add(store.client.get_run(tracker.run_id).info.run_name)
    assert len(names) == 3
    assert all(name.startswith("finetune-Qwen3-4B-") for name in names)


def test_an_artifact_is_stored_as_it_was_when_logged(
    begin: Opener, store: TrackingStore, tmp_path: Path
) -> None:
    file, folder = tmp_path / "report.json", tmp_path / "plots"
    file.write_text("before")
    folder.mkdir()
    (folder / "loss.png").write_bytes(b"png")
    tracker = begin()
    tracker.log_artifact(file, "reports")
    tracker.log_artifact(folder)
    file.write_text("after")
    (folder / "loss.png").unlink()
    tracker.end("finished")
    assert tracker.run_id is not None
    kept = Path(store.client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (kept / "reports/report.json").read_text() == "before"
    assert (kept / "plots/loss.png").read_bytes() == b"png"


def test_long_texts_are_truncated_and_stored_complete_as_artifacts(
    begin: Opener, store: TrackingStore, tmp_path: Path, warnings: list[str]
) -> None:
    long = "x" * 20_000
    tracker = begin(params={"system prompt": long, "lr": 1})
    tracker.set_tags({"note": long})
    tracker.log_params({"k" * 300: 1})
    tracker.end("finished")
    assert tracker.run_id is not None
    run = store.client.get_run(tracker.run_id)
    assert len(run.data.params["system prompt"]) == 6000
    assert len(run.data.tags["note"]) == 8000
    assert run.data.params["k" * 250] == "1"
    assert run.data.params["lr"] == "1"
    kept = Path(store.client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (kept / "params/system prompt.txt").read_text() == long
    assert (kept / "tags/note.txt").read_text() == long
    assert warnings == []


def test_nan_is_stored_and_invalid_values_do_not_affect_others(
    begin: Opener, store: TrackingStore, warnings: list[str]
) -> None:
    tracker = begin()
    bad = {"a/loss": math.nan, "b": math.inf, "no": "text", "c (%)": 1.0, "../d": 2.0}
    tracker.log_metrics(bad)  # type: ignore[arg-type]
    tracker.end("finished")
    assert tracker.run_id is not None
    metrics = store.client.get_run(tracker.run_id).data.metrics
    assert math.isnan(metrics.pop("a/loss"))
    assert metrics.pop("b") > 1e308
    assert metrics == {"c ___": 1.0, "d": 2.0}
    assert warnings == []


def test_a_changed_parameter_is_stored_as_a_tag(
    begin: Opener, store: TrackingStore, warnings: list[str]
) -> None:
    first = begin(params={"lr": 0.1, "epochs": 1})
    first.end("failed", "out of memory")
    second = begin(resume_run_id=first.run_id, params={"lr": 0.1, "epochs": 2, "batch": 4})
    second.end("finished")
    assert second.run_id == first.run_id is not None
    run = store.client.get_run(first.run_id)
    assert run.data.params == {"lr": "0.1", "epochs": "1", "batch": "4"}
    assert run.data.tags[TAG_CHANGED_PREFIX + "epochs"] == "2"
    assert TAG_CHANGED_PREFIX + "lr" not in run.data.tags
    assert run.info.status == "FINISHED"
    assert "llmctl.error" not in run.data.tags
    assert warnings == []


def test_resuming_a_missing_run_creates_a_new_one(begin: Opener, warnings: list[str]) -> None:
    tracker = begin(resume_run_id="f" * 32)
    tracker.end("finished")
    assert tracker.run_id not in (None, "f" * 32)
    assert len(warnings) == 1
    assert "f" * 32 in warnings[0]


def test_a_retry_finds_the_run_created_by_a_lost_call(
    store: TrackingStore,
) -> None:
    start = RunStart("eval", "tiny")
    names = ("eval-tiny-1", "eval-tiny-1", "eval-tiny-2")
    first, second, other = (
        begin_run(store, start, name, 1_800_000_000_123, print, is_retry=True) for name in names
    )
    assert first.run_id == second.run_id != other.run_id


def test_a_metric_of_an_unknown_model_is_stored_with_the_run(
    begin: Opener, store: TrackingStore, warnings: list[str]
) -> None:
    tracker = begin("eval")
    tracker.log_metrics({"eval/loss": 2.0})
    tracker.log_metrics({"eval/ceval": 0.5, "eval/mmlu": 0.4}, model_id="m-" + "0" * 32)
    tracker.end("finished")
    assert tracker.run_id is not None
    metrics = store.client.get_run(tracker.run_id).data.metrics
    assert metrics == {"eval/loss": 2.0, "eval/ceval": 0.5, "eval/mmlu": 0.4}
    assert len(warnings) == 1
    assert "a metric was rejected" in warnings[0]


def test_a_model_is_registered_and_its_files_stay_in_place(
    begin: Opener, store: TrackingStore, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    tracker = begin(parent_run_id=None)
    model_id = tracker.log_model("o/w:n", adapter, {"base": "smollm2-135m"})
    tracker.end("finished")
    assert model_id is not None
    model = store.client.get_logged_model(model_id)
    assert (model.name, str(model.status)) == ("o-w-n", "READY")
    assert model.source_run_id == tracker.run_id is not None
    assert model.tags["llmctl.adapter"] == str(adapter)
    run: Any = store.client.get_run(tracker.run_id)
    assert run.data.tags[TAG_MODEL_ID] == model_id
    assert [made.model_id for made in run.outputs.model_outputs] == [model_id]
    assert [file.name for file in adapter.iterdir()] == ["adapter_model.safetensors"]


def test_a_trace_holds_content_only_if_given(begin: Opener, store: TrackingStore) -> None:
    tracker = begin("serve")
    times = (1_800_000_000.0, 1.5, 0.25)
    messages = [{"role": "user", "content": "你好"}]
    tracker.log_trace(RequestTrace("chatcmpl-1", *times, prompt_tokens=3, completion_tokens=4))
    tracker.log_trace(RequestTrace("chatcmpl-2", *times, prompt=messages, answer="hi", error="x"))
    tracker.end("finished")
    traces = {
        trace.info.client_request_id: trace
        for trace in store.client.search_traces(
            locations=[store.experiment_id],
            filter_string=f"metadata.`mlflow.sourceRun` = '{tracker.run_id}'",
        )
    }
    quiet, full = traces["chatcmpl-1"], traces["chatcmpl-2"]
    assert (quiet.info.request_preview, quiet.info.response_preview) == (None, None)
    assert quiet.info.execution_duration == 1500
    assert json.loads(quiet.info.trace_metadata["mlflow.trace.tokenUsage"])["total_tokens"] == 7
    (span,) = quiet.data.spans
    assert (span.inputs, span.outputs, span.get_attribute("llmctl.ttft_s")) == (None, None, 0.25)
    (span,) = full.data.spans
    assert (span.inputs, span.outputs) == (messages, "hi")
    assert (str(quiet.info.state), str(full.info.state)) == ("OK", "ERROR")


def test_a_child_run_has_the_id_of_its_parent(begin: Opener, store: TrackingStore) -> None:
    parent = begin()
    child = begin("eval", parent_run_id=parent.run_id)
    child.end("finished")
    parent.end("finished")
    assert child.run_id is not None
    assert store.client.get_run(child.run_id).data.tags[TAG_PARENT] == parent.run_id


def test_only_rank_0_records(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert type(open_tracker(RunStart("finetune"), warn=print)) is Tracker
    monkeypatch.setenv("RANK", "0")
    assert type(open_tracker(RunStart("finetune"), enabled=False, warn=print)) is Tracker
    assert not (home / "tracking").exists()


def test_calls_after_the_end_are_ignored(begin: Opener, store: TrackingStore) -> None:
    tracker = begin()
    tracker.end("killed", "stopped by Ctrl-C")
    tracker.end("finished")
    tracker.log_metrics({"late": 1.0})
    assert tracker.run_id is not None
    run = store.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {})
