"""Lineage in the store, from the data to served requests and back."""

from pathlib import Path
from typing import Any

from llmctl.monitor import ServingMonitor
from llmctl.monitor.store import TrackingStore
from llmctl.types import TAG_MODEL_ID, TAG_USED_MODEL_ID, DatasetRef, RequestTrace
from tests.monitor.conftest import Opener

RAW = DatasetRef("raw.jsonl", "/data/raw.jsonl", "aa" * 32, 1200, "alpaca")
CLEAN = DatasetRef("clean.jsonl", "/data/clean.jsonl", "bb" * 32, 1100, "alpaca")
HUB = DatasetRef("ceval", "ceval/ceval-exam", "cc" * 32, 1346)


def test_lineage_links_data_model_and_requests_in_both_directions(
    begin: Opener, store: TrackingStore, tmp_path: Path
) -> None:
    clean = begin("clean", model="")
    clean.log_dataset(RAW, "source")
    clean.log_dataset(CLEAN, "output")
    clean.end("finished")

    finetune = begin("finetune")
    finetune.log_dataset(CLEAN, "training")
    model_id = finetune.log_model("adapter", tmp_path)
    assert model_id is not None
    finetune.end("finished")

    evaluation = begin("eval")
    evaluation.use_model(model_id)
    evaluation.log_dataset(HUB, "evaluation")
    evaluation.log_metrics({"eval/ceval": 0.31}, model_id=model_id)
    evaluation.end("finished")

    serve = begin("serve")
    monitor = ServingMonitor(serve, share=1.0, model_id=model_id)
    monitor.record(RequestTrace("chatcmpl-1", 1_800_000_000.0, 1.0))
    monitor.close()
    serve.end("finished")

    # From the data: the same digest is the same dataset.
    runs: list[Any] = store.client.search_runs(
        [store.experiment_id], f"dataset.digest = '{'b' * 36}'"
    )
    uses = {
        run.info.run_id: [
            {tag.key: tag.value for tag in use.tags}["mlflow.data.context"]
            for use in run.inputs.dataset_inputs
            if use.dataset.digest == "b" * 36
        ]
        for run in runs
    }
    assert uses == {clean.run_id: ["output"], finetune.run_id: ["training"]}

    # From the model: its source run, its metrics, the runs that use it.
    model: Any = store.client.get_logged_model(model_id)
    assert model.source_run_id == finetune.run_id
    assert {metric.key: metric.value for metric in model.metrics} == {"eval/ceval": 0.31}
    users = store.client.search_runs(
        [store.experiment_id], f"tags.`{TAG_USED_MODEL_ID}` = '{model_id}'"
    )
    assert {run.info.run_id for run in users} == {evaluation.run_id, serve.run_id}
    (source,) = store.client.search_runs(
        [store.experiment_id], f"tags.`{TAG_MODEL_ID}` = '{model_id}'"
    )
    assert source.info.run_id == finetune.run_id

    # From a request to the model and the run of the server.
    (trace,) = store.client.search_traces(
        locations=[store.experiment_id], filter_string=f"metadata.`mlflow.modelId` = '{model_id}'"
    )
    assert trace.info.trace_metadata["mlflow.sourceRun"] == serve.run_id
    served: Any = store.client.get_run(str(serve.run_id))
    assert [used.model_id for used in served.inputs.model_inputs] == [model_id]
