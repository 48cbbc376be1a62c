"""Duration of `llmctl runs` with a store of 1,000 runs with 1,000 steps each.

Run `python tests/benchmarks/run_listing.py`. It creates the store in a temporary folder (or in
`--store FOLDER`, to keep it), then prints the median wall time of whole commands, of the same query
through MLflow's client, and of the imports alone.
"""

import argparse
import math
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path

METRICS = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_s")
PARAMS = 25
MODELS = ("smollm2-135m", "qwen3-0.6b", "qwen3-4b")
START_MS = 1_790_000_000_000


def build(database: Path, runs: int, steps: int) -> None:
    """Fill a store by SQL, because MLflow's client would take hours."""
    from llmctl.monitor.store import open_store

    store = open_store(f"sqlite:///{database.as_posix()}")
    chance = random.Random(7)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        for number in range(runs):
            run_id = uuid.UUID(int=chance.getrandbits(128)).hex
            _add_run(connection, store.experiment_id, run_id, number, steps, chance)


def _add_run(
    connection: sqlite3.Connection,
    experiment: str,
    run_id: str,
    number: int,
    steps: int,
    chance: random.Random,
) -> None:
    model = MODELS[number % len(MODELS)]
    kind = "eval" if number % 5 == 4 else "finetune"
    begin = START_MS + number * 3_600_000
    connection.execute(
        "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, "
        "status, start_time, end_time, source_version, lifecycle_stage, artifact_uri, "
        "experiment_id) VALUES (?, ?, 'UNKNOWN', '', '', 'me', 'FINISHED', ?, ?, '', 'active', "
        "?, ?)",
        (run_id, f"{kind}-{model}-{number}", begin, begin + steps * 900, "", experiment),
    )
    params = [(f"setting_{index}", str(chance.random()), run_id) for index in range(PARAMS)]
    connection.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", params)
    key = "eval/ceval" if kind == "eval" else "train/loss"
    tags = {"llmctl.kind": kind, "llmctl.model": model, "llmctl.key_metric": key}
    tags |= {f"llmctl.other_{index}": "x" * 20 for index in range(7)}
    connection.executemany(
        "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
        [(name, value, run_id) for name, value in tags.items()],
    )
    rows = []
    for metric in METRICS:
        for step in range(steps):
            value = 0.5 + 2 * math.exp(-step / 200) + chance.gauss(0, 0.05)
            rows.append((metric, value, begin + step * 900, run_id, step, 0))
    rows.append(("eval/ceval", chance.random(), begin, run_id, 0, 0))
    columns = "(key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
    connection.executemany(f"INSERT INTO metrics {columns}", rows)
    latest = {row[0]: row for row in rows}.values()
    connection.executemany(f"INSERT INTO latest_metrics {columns}", latest)


def seconds(command: list[str], environment: dict[str, str], rounds: int = 5) -> str:
    """Return the median wall time of a process, and the spread."""
    taken, quiet = [], subprocess.DEVNULL
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=quiet, stderr=quiet)
        taken.append(time.perf_counter() - begin)
    return f"{statistics.median(taken):.2f} s  ({min(taken):.2f} to {max(taken):.2f})"


CLIENT = (
    "import logging, sys; logging.disable(logging.CRITICAL)\n"
    "from mlflow import MlflowClient\n"
    "client = MlflowClient(sys.argv[1])\n"
    "ids = [client.get_experiment_by_name('llmctl').experiment_id]\n"
    "found = client.search_runs(ids, max_results=50000)\n"
    "print(len(found))\n"
)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--store", type=Path, help="Folder to keep the store in.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.store or Path(temporary)
        database = home / "mlflow.db"
        if not database.exists():
            home.mkdir(parents=True, exist_ok=True)
            begin = time.perf_counter()
            build(database, arguments.runs, arguments.steps)
            print(f"built {arguments.runs:,} runs in {time.perf_counter() - begin:.0f} s, ", end="")
            print(f"{database.stat().st_size / 1e9:.2f} GB")
        uri = f"sqlite:///{database.as_posix()}"
        environment = os.environ | {"LLMCTL_HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        llmctl = [sys.executable, "-m", "llmctl"]
        python = [sys.executable, "-c"]
        for label, command in {
            "llmctl runs list": [*llmctl, "runs", "list"],
            "llmctl runs list --json --limit 0": [*llmctl, "runs", "list", "--json", "--limit=0"],
            "llmctl runs list --sort -eval/ceval": [*llmctl, "runs", "list", "--sort=-eval/ceval"],
            "llmctl runs best": [*llmctl, "runs", "best", "--metric", "eval/ceval"],
            "llmctl runs show latest": [*llmctl, "runs", "show", "latest"],
            "llmctl --help": [*llmctl, "--help"],
            "MlflowClient.search_runs alone": [*python, CLIENT, uri],
            "import mlflow": [*python, "import mlflow"],
            "import MLflow's SQL store": [
                *python,
                "import mlflow.store.tracking.sqlalchemy_store",
            ],
        }.items():
            print(f"{label:<36} {seconds(command, environment)}", flush=True)


if __name__ == "__main__":
    main()
