"""The tracking store: its address, creation, upgrade and opening.

Only `llmctl.monitor` imports MLflow, and only when a store is opened.
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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from llmctl.atomic_files import atomic_path
from llmctl.config import store_home
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Progress, ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT: Final = "llmctl"
EXPERIMENT_VARIABLE: Final = "MLFLOW_EXPERIMENT_NAME"
URI_VARIABLE: Final = "MLFLOW_TRACKING_URI"
_PASSWORDS: Final = re.compile(
    r"""(://[^\s/@:'"]*:)[^\s'"]+(?=@)|(://)[^\s/@:'"]+(?=@)"""
    r"""|([?&](?:password|sslpassword|token)=)[^\s&'"]+""",
    re.IGNORECASE,
)
_DRIVERS: Final = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}
"""Modules of database drivers whose package has another name."""
_DRIVER_MODULES: Final = {
    "postgresql": "psycopg2",
    "mysql": "MySQLdb",
    "mysql+mysqldb": "MySQLdb",
    "mysql+mysqlconnector": "mysql",
    "mssql": "pyodbc",
}
"""Modules of the drivers that an address does not name."""
_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
# Defaults unless the user sets them: no telemetry, no links on stdout; the writer does the retries.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True, slots=True)
class TrackingStore:
    """An open store, and the experiment of llmctl in it."""

    uri: str
    client: "MlflowClient"
    experiment_id: str


def store_uri(option: str | None = None) -> str:
    """Return the address: the option, else `MLFLOW_TRACKING_URI`, else SQLite in llmctl's folder.

    Raises:
        ConfigError: it is not the address of a store that MLflow supports.
    """
    uri = option or os.environ.get(URI_VARIABLE)
    if not uri:
        return f"sqlite:///{(store_home() / 'mlflow.db').as_posix()}"
    if re.split(r"[:+]", uri, maxsplit=1)[0] not in _SCHEMES or uri.startswith("sqlite:///:"):
        origin = "--tracking-uri" if option else URI_VARIABLE
        raise ConfigError(
            f"{origin} {redact(uri)!r} is not a tracking store",
            hint="use http://HOST:PORT or sqlite:///FILE.db; MLflow does not support plain folders "
            "any more",
        )
    if uri.startswith(("http:", "https:")):
        try:
            parts = urlsplit(uri)
            _ = parts.port  # raises if it is no number
        except ValueError as error:
            raise _bad_address(uri, error) from error
        if not parts.hostname:
            raise _bad_address(uri, "it has no host")
    file = sqlite_path(uri)
    return uri if file is None else f"sqlite:///{file.as_posix()}"


def check_store_uri(option: str | None = None) -> None:
    """Check the address of the store without a connection and without importing MLflow.

    Raises:
        ConfigError: as `store_uri`, or the Python package for the database is missing.
    """
    uri = store_uri(option)
    scheme = uri.partition("://")[0]
    database, _, driver = scheme.partition("+")
    if database in ("postgresql", "mysql", "mssql"):
        module = _DRIVER_MODULES.get(scheme, driver)
        if find_spec(module) is None:
            raise _missing_driver(uri, module)


def _bad_address(uri: str, reason: object) -> ConfigError:
    return ConfigError(
        f"{redact(uri)} is not the address of a tracking store: {redact(str(reason))}",
        hint=f"check --tracking-uri and {URI_VARIABLE}",
    )


def _missing_driver(uri: str, module: str) -> ConfigError:
    return ConfigError(
        f"the tracking store {redact(uri)} needs the Python package {module}",
        hint=f"pip install {_DRIVERS.get(module, module)}, or use another --tracking-uri",
    )


def redact(text: str) -> str:
    """Return a text in which the passwords of addresses are `***`."""
    return _PASSWORDS.sub(lambda found: f"{found[1] or found[2] or found[3]}***", text)


def experiment_name() -> str:
    """Return the experiment of new runs: `MLFLOW_EXPERIMENT_NAME`, else `llmctl`."""
    return os.environ.get(EXPERIMENT_VARIABLE) or EXPERIMENT


def open_client(uri: str) -> "MlflowClient":
    """Return MLflow's client for a store.

    Raises:
        ConfigError: the address is not valid, or the Python package for the database is missing.
        Exception: the store cannot be reached.
    """
    import_mlflow()
    from mlflow import MlflowClient

    try:
        return MlflowClient(uri, registry_uri=uri)
    except ImportError as error:
        raise _missing_driver(uri, error.name or str(error)) from error
    except Exception as error:
        from sqlalchemy.exc import ArgumentError

        if not isinstance(error, ArgumentError | ValueError):
            raise
        raise _bad_address(uri, error) from error


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store; None for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).expanduser().resolve()


def artifacts_folder() -> Path:
    """Return the folder of the artifacts, for stores without a folder of their own."""
    return store_home() / "artifacts"


def import_mlflow() -> None:
    """Import MLflow without telemetry and with fewer log messages. Takes a second or more."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  configures the loggers, so the levels are set afterwards

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # It logs the whole statement if a database is locked; the writer reports that in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def open_store(uri: str, progress: ProgressCallback = ignore_progress) -> TrackingStore:
    """Open a store; create a SQLite file that does not exist yet.

    Raises:
        LlmctlError: the store is of another version of MLflow and cannot be upgraded.
        mlflow.exceptions.MlflowException, sqlite3.Error, OSError: it cannot be reached or written.
    """
    file = sqlite_path(uri)
    if file is None:
        client = open_client(uri)
    else:
        if not file.exists():
            create_sqlite_store(file, progress)
        client = _open_file(file, progress)
    return TrackingStore(uri, client, _experiment(client, uri))


def _open_file(file: Path, progress: ProgressCallback) -> "MlflowClient":
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    # For a file that is not a database, MLflow retries for minutes before it fails.
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("SELECT 1 FROM sqlite_master")
    uri = f"sqlite:///{file.as_posix()}"
    # A newer MLflow may add tables when it opens the store: one process at a time.
    with FileLock(_lock_file(file)):
        try:
            return open_client(uri)
        except MlflowException as error:
            if "out-of-date database schema" not in str(error):
                raise
        _upgrade(file, progress)
        return open_client(uri)


def _experiment(client: "MlflowClient", uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has its own place for artifacts; it cannot use a path on this machine.
        remote = uri.startswith(("http", "databricks"))
        folder = None if remote else artifacts_folder().as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=folder))
        except MlflowException:  # created by another process, or the store cannot be written
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def create_sqlite_store(file: Path, progress: ProgressCallback) -> None:
    """Create a SQLite store, complete or not at all: it is renamed from a temporary folder."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_file(file)):
        if file.exists():
            return
        progress(Progress("preparing the tracking store (once)"))
        with (
            tempfile.TemporaryDirectory(
                prefix=".mlflow-", dir=file.parent, ignore_cleanup_errors=True
            ) as folder,
            atomic_path(file) as ready,
        ):
            raw = Path(folder) / "raw.db"
            open_client(f"sqlite:///{raw.as_posix()}").search_experiments()
            with (
                closing(sqlite3.connect(raw)) as source,
                closing(sqlite3.connect(ready)) as target,
            ):
                source.backup(target)
                # Readers and the writer do not block each other in this mode.
                target.execute("PRAGMA journal_mode = WAL")


def _upgrade(file: Path, progress: ProgressCallback) -> None:
    """Upgrade a store of an older MLflow, after a backup beside it."""
    progress(Progress("upgrading the tracking store (once)"))
    copy = file.with_name(f"{file.name}.before-upgrade")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{file.as_posix()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise LlmctlError(
            f"the tracking store {file} is of another MLflow and cannot be upgraded: {reason}",
            hint="install the newest MLflow, or give --tracking-uri another store",
        )


def _lock_file(file: Path) -> Path:
    return file.with_name(f".{file.name}.lock")
