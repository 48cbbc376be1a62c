#!/usr/bin/env bash
# MLflow 3.17.2 keeps only the first context of a dataset in a run and drops the second silently.
#
# `mlflow.log_input(dataset, context=...)` may be called several times in a run. If one dataset (same
# name and digest) is logged with two contexts, as a step does that reads data and finds nothing to
# change in it, the second call returns without a warning and its context is lost: the lineage shows
# an input but no output. Two datasets that differ only in their name keep both contexts.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "mlflow==3.17.2"
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import mlflow
import numpy as np

mlflow.set_tracking_uri("sqlite:///runs.db")


def contexts(names):
    with mlflow.start_run() as run:
        for name, context in zip(names, ("source", "output")):
            mlflow.log_input(mlflow.data.from_numpy(np.arange(3), name=name), context=context)
    inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    return sorted((i.dataset.name, i.tags[0].value) for i in inputs)


same, other = contexts(["rows", "rows"]), contexts(["rows", "rows (output)"])
print("mlflow", mlflow.__version__)
print("one name, two contexts:", same)
print("two names:", other)
assert same == [("rows", "source")], "changed: both contexts are kept now"
assert other == [("rows", "source"), ("rows (output)", "output")]
PY
