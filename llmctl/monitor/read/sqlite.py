"""Reading of runs directly from a SQLite store, without MLflow.

The import of MLflow's client and its SQLAlchemy store takes longer than `runs list` may take. So
the tables are read with the standard library, if their schema is one of those that were tested; any
other store is read through MLflow's client.
"""

import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Self

from llmctl.errors import LlmctlError
from llmctl.monitor.read.record import RunReader, dataset_use, restore_infinity, run_record
from llmctl.monitor.store import EXPERIMENT, experiment_name
from llmctl.types import DatasetUse, MetricPoint, RunRecord

KNOWN_SCHEMAS: Final = frozenset(
    {
        "b7e4c1a90f23",  # MLflow 3.14
        "a8b9c0d1e2f3",
        "c1d2e3f4a5b6",
        "c3d9e7f1a2b4",
        "6f8d9c3b2a1e",  # 3.15
        "1971f2d9a75b",
        "17e22815139b",
        "b7e2c1a4d9f3",  # 3.16
        "75868b020152",
        "dc11669786a5",  # 3.17
    }
)
"""Schema versions (Alembic migrations) with the tables as this module expects them."""
_BUSY_S = 10.0
_OURS = (
    "FROM runs JOIN experiments USING (experiment_id) "
    "WHERE experiments.name IN (?, ?) AND runs.lifecycle_stage = ?"
)


class SqliteRunReader(RunReader):
    """Reads a store in a SQLite file, also while another process writes it."""

    @classmethod
    def open(cls, file: Path) -> Self | None:
        """Return a reader, or None if the schema is unknown.

        Raises:
            LlmctlError: the file is not a tracking store, or cannot be read.
        """
        reader = cls(file)
        known = False
        try:
            tables = {name for (name,) in reader._read("SELECT name FROM sqlite_master")}
            if not {"alembic_version", "experiments"} <= tables:
                raise LlmctlError(
                    f"{file} is not a tracking store of MLflow",
                    hint="give another file to --tracking-uri, or leave out the option",
                )
            versions = {version for (version,) in reader._read("SELECT * FROM alembic_version")}
            known = bool(versions) and versions <= KNOWN_SCHEMAS
        finally:
            if not known:
                reader.close()
        return reader if known else None

    def __init__(self, file: Path) -> None:
        self._file = file
        # Not mode=ro, which cannot roll back the unfinished transaction of a killed writer.
        uri = f"{file.resolve().as_uri()}?mode=rw"
        try:
            self._connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S)
            self._connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise _unreadable(file, error) from error

    def close(self) -> None:
        self._connection.close()

    def runs(self, *, deleted: bool = False) -> list[RunRecord]:
        which = (EXPERIMENT, experiment_name(), "deleted" if deleted else "active")
        params = self._texts("params", which)
        tags = self._texts("tags", which)
        metrics: dict[str, dict[str, float]] = defaultdict(dict)
        for run_id, key, value, is_nan in self._read(
            f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE run_uuid IN "
            f"(SELECT run_uuid {_OURS}) ORDER BY key",
            which,
        ):
            metrics[run_id][key] = _number(value, is_nan)
        datasets = self._datasets()
        rows = self._read(
            "SELECT run_uuid, runs.name, status, start_time, end_time, artifact_uri "
            f"{_OURS} ORDER BY start_time DESC, run_uuid",
            which,
        )
        return [
            run_record(
                *run,
                params=params[run[0]],
                metrics=metrics[run[0]],
                tags=tags[run[0]],
                datasets=datasets[run[0]],
                deleted=deleted,
            )
            for run in rows
        ]

    def curves(self, run_id: str) -> dict[str, list[MetricPoint]]:
        found: dict[str, list[MetricPoint]] = defaultdict(list)
        for key, step, time_ms, value, is_nan in self._read(
            "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ? "
            "ORDER BY key, step, timestamp",
            (run_id,),
        ):
            found[key].append(MetricPoint(step, time_ms / 1000, _number(value, is_nan)))
        return dict(found)

    def count_traces(self, run_id: str) -> int:
        ((count,),) = self._read(
            "SELECT COUNT(*) FROM trace_request_metadata "
            "WHERE key = 'mlflow.sourceRun' AND value = ?",
            (run_id,),
        )
        return int(count)

    def _texts(self, table: str, which: tuple[str, ...]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for run_id, key, value in self._read(
            f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN "
            f"(SELECT run_uuid {_OURS}) ORDER BY key",
            which,
        ):
            found[run_id][key] = value or ""
        return found

    def _datasets(self) -> dict[str, list[DatasetUse]]:
        found: dict[str, list[DatasetUse]] = defaultdict(list)
        for run_id, name, digest, context, source, profile in self._read(
            "SELECT inputs.destination_id, datasets.name, digest, input_tags.value, "
            "dataset_source, dataset_profile FROM inputs "
            "JOIN datasets ON datasets.dataset_uuid = inputs.source_id "
            "LEFT JOIN input_tags ON input_tags.input_uuid = inputs.input_uuid "
            "AND input_tags.name = 'mlflow.data.context' "
            "WHERE inputs.source_type = 'DATASET' AND inputs.destination_type = 'RUN'"
        ):
            use = dataset_use(name, digest, context or "", source or "", profile or "")
            found[run_id].append(use)
        return found

    def _read(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            with closing(self._connection.execute(statement, tuple(values))) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise _unreadable(self._file, error) from error


def _number(value: float, is_nan: int) -> float:
    return math.nan if is_nan else restore_infinity(value)


def _unreadable(file: Path, error: sqlite3.Error) -> LlmctlError:
    if "locked" in str(error) or "busy" in str(error):
        return LlmctlError(
            f"the tracking store {file} has been locked for {_BUSY_S:.0f} s",
            hint="another program writes it; try again",
        )
    return LlmctlError(
        f"the tracking store {file} cannot be read: {error}",
        hint="give another store to --tracking-uri, or move the file to start with a new store",
    )
