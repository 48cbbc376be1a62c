"""Which files does a run hold, and how are they copied out or taken along as a whole?"""

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.store import store_uri
from llmctl.types import MetricPoint, RunRecord


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file that is kept with a run."""

    path: str
    """Below the run's own folder, with `/` between parts."""
    bytes: int


def local_artifact_folder(artifact_uri: str) -> Path | None:
    """Return the folder of a run's files on this machine; None if they are elsewhere."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    path = Path(artifact_uri)
    return path if path.is_absolute() else None


def list_files(run: RunRecord, tracking_uri: str | None) -> list[RunFile]:
    """List the files of a run, by path. Raises `LlmctlError`: the server does not answer."""
    if not run.artifact_uri:
        return []
    folder = local_artifact_folder(run.artifact_uri)
    if folder is None:
        return sorted(_remote_files(run, store_uri(tracking_uri)), key=lambda file: file.path)
    return [
        RunFile(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _remote_files(run: RunRecord, uri: str) -> Iterator[RunFile]:
    from llmctl.monitor.read.client import translated_store_errors
    from llmctl.monitor.store import import_mlflow

    import_mlflow()
    from mlflow import MlflowClient

    with translated_store_errors(uri):
        client = MlflowClient(uri, registry_uri=uri)
        folders: list[str | None] = [None]
        while folders:
            for found in client.list_artifacts(run.run_id, folders.pop()):
                if found.is_dir:
                    folders.append(found.path)
                else:
                    yield RunFile(found.path, found.file_size or 0)


def copy_files(run: RunRecord, target: Path, tracking_uri: str | None) -> None:
    """Copy the files of a run into a new folder; none is made if there are no files."""
    folder = local_artifact_folder(run.artifact_uri) if run.artifact_uri else None
    if folder is not None:
        if folder.is_dir():
            shutil.copytree(folder, target)
        return
    if not list_files(run, tracking_uri):
        return
    uri = store_uri(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    from llmctl.monitor.read.client import translated_store_errors

    target.mkdir()
    with translated_store_errors(uri):
        client = MlflowClient(uri, registry_uri=uri)
        client.download_artifacts(run.run_id, "", str(target))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Lend a folder to fill, which becomes `target` by one rename if the block ends well.

    Raises:
        ConfigError: something is there already, or the folder around it is missing.
        LlmctlError: the disk refuses.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} is there already", hint="name a folder that is new or empty")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target.absolute().parent} is no folder", hint="make it first")
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}-", dir=target.absolute().parent, ignore_cleanup_errors=True
        ) as aside:
            inner = Path(aside) / "export"
            inner.mkdir()
            yield inner
            if target.is_dir():
                target.rmdir()
            os.replace(inner, target)
    except OSError as error:
        raise LlmctlError(f"{target} cannot be written: {error}") from error


def write_export(
    run: RunRecord,
    plain: Mapping[str, Any],
    curves: Mapping[str, Sequence[MetricPoint]],
    target: Path,
    tracking_uri: str | None,
) -> None:
    """Write everything that is known of a run into a new folder, which appears whole.

    `run.json` is `plain`; `params.json`, `tags.json`, `metrics.json` and `metrics.csv` (every
    point) hold its parts; `artifacts/` the files, where there are any.

    Raises:
        ConfigError, LlmctlError: as `staged_folder`; or the store failed.
    """
    with new_folder(target) as folder:
        _write_json(folder / "run.json", plain)
        _write_json(folder / "params.json", dict(run.params))
        _write_json(folder / "tags.json", dict(run.tags))
        _write_json(folder / "metrics.json", plain["metrics"])
        with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("metric", "step", "time", "value"))
            for name, points in curves.items():
                rows.writerows((name, point.step, point.time, point.value) for point in points)
        copy_files(run, folder / "artifacts", tracking_uri)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
