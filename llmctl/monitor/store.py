"""Where the record of all runs is kept, and how a store is made whole or not at all.

Nothing outside this room imports MLflow, and here too it is imported when a store is opened.
"""

import logging
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmctl.config import store_home
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Progress, ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT: Final = "llmctl"
URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
# Ours to decide unless the person did: no telemetry, no links on stdout; retries are the writer's.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True, slots=True)
class TrackingStore:
    """An open store, and llmctl's place in it."""

    uri: str
    client: "MlflowClient"
    experiment_id: str


def store_uri(option: str | None = None) -> str:
    """Return the store to use: the option, else `MLFLOW_TRACKING_URI`, else SQLite in our folder.

    Raises:
        ConfigError: it is no address of a store that MLflow still writes.
    """
    uri = option or os.environ.get(URI_VARIABLE)
    if not uri:
        return f"sqlite:///{(store_home() / 'mlflow.db').as_posix()}"
    if re.split(r"[:+]", uri, maxsplit=1)[0] not in _SCHEMES or uri.startswith("sqlite:///:"):
        origin = "--tracking-uri" if option else URI_VARIABLE
        raise ConfigError(
            f"{origin} {uri!r} is no tracking store",
            hint="write http://HOST:PORT, or sqlite:///FILE.db; plain folders MLflow no longer "
            "writes",
        )
    file = sqlite_path(uri)
    return uri if file is None else f"sqlite:///{file.as_posix()}"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store; None for any other."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).expanduser().resolve()


def artifacts_folder() -> Path:
    """Return the folder of the runs' files, for every store that has none of its own."""
    return store_home() / "artifacts"


def import_mlflow() -> None:
    """Import MLflow without telemetry and without its talk. Takes a second or more."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  sets the loggers up, so ours come after

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # It logs the whole statement when a database is locked; who waits for it says so in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def open_store(uri: str, progress: ProgressCallback = ignore_progress) -> TrackingStore:
    """Open a store, and make it first if it is a SQLite file that is not there yet.

    Raises:
        LlmctlError: the store is of another MLflow and could not be brought up to date.
        mlflow.exceptions.MlflowException, sqlite3.Error, OSError: it cannot be reached or written.
    """
    import_mlflow()
    from mlflow import MlflowClient

    file = sqlite_path(uri)
    if file is None:
        client = MlflowClient(uri, registry_uri=uri)
    else:
        if not file.exists():
            create_sqlite_store(file, progress)
        client = _open_file(file, progress)
    return TrackingStore(uri, client, _experiment(client, uri))


def _open_file(file: Path, progress: ProgressCallback) -> "MlflowClient":
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # MLflow tries a file that is no database for minutes before it says so.
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("SELECT 1 FROM sqlite_master")
    uri = f"sqlite:///{file.as_posix()}"
    # A newer MLflow may add tables as it opens the store: one process at a time.
    with FileLock(_lock_file(file)):
        try:
            return MlflowClient(uri, registry_uri=uri)
        except MlflowException as error:
            if "out-of-date database schema" not in str(error):
                raise
        _upgrade(file, progress)
        return MlflowClient(uri, registry_uri=uri)


def _experiment(client: "MlflowClient", uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        # A server keeps files where it likes; a path on this machine would mean nothing to it.
        remote = uri.startswith(("http", "databricks"))
        folder = None if remote else artifacts_folder().as_uri()
        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=folder))
        except MlflowException:  # another process was faster, or the store cannot be written
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def create_sqlite_store(file: Path, progress: ProgressCallback) -> None:
    """Build a SQLite store aside and move it in by one rename: no crash leaves half a store."""
    from filelock import FileLock
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_file(file)):
        if file.exists():
            return
        progress(Progress("preparing the tracking store (once)"))
        with tempfile.TemporaryDirectory(
            prefix=".mlflow-", dir=file.parent, ignore_cleanup_errors=True
        ) as aside:
            raw, ready = Path(aside) / "raw.db", Path(aside) / "ready.db"
            MlflowClient(f"sqlite:///{raw.as_posix()}").search_experiments()
            with (
                closing(sqlite3.connect(raw)) as source,
                closing(sqlite3.connect(ready)) as target,
            ):
                source.backup(target)
                # So that readers and the one writer do not wait for each other.
                target.execute("PRAGMA journal_mode = WAL")
            ready.replace(file)


def _upgrade(file: Path, progress: ProgressCallback) -> None:
    """Bring a store of an older MLflow up to date, after a copy of it was put beside it."""
    progress(Progress("bringing the tracking store up to date (once)"))
    copy = file.with_name(f"{file.name}.before-upgrade")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{file.as_posix()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise LlmctlError(
            f"the tracking store {file} is of another MLflow and cannot be brought up to date: "
            f"{reason}",
            hint="install the newest MLflow, or give --tracking-uri another store",
        )


def _lock_file(file: Path) -> Path:
    return file.with_name(f".{file.name}.lock")
