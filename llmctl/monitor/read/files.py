"""Artifacts of a run: listing, copying, and export of the whole run to a folder."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from llmctl.atomic_files import atomic_folder
from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.store import open_client, store_uri
from llmctl.types import MetricPoint, RunRecord


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file among the artifacts of a run."""

    path: str
    """Relative to the artifacts of the run, with `/` between parts."""
    bytes: int


def local_artifact_folder(artifact_uri: str) -> Path | None:
    """Return the folder of artifacts on this machine; None if they are elsewhere."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    path = Path(artifact_uri)
    return path if path.is_absolute() else None


def list_files(run: RunRecord, tracking_uri: str | None) -> list[RunFile]:
    """List the artifacts of a run by path. Raises `LlmctlError` if the server does not answer."""
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

    with translated_store_errors(uri):
        client = open_client(uri)
        folders: list[str | None] = [None]
        while folders:
            for found in client.list_artifacts(run.run_id, folders.pop()):
                if found.is_dir:
                    folders.append(found.path)
                else:
                    yield RunFile(found.path, found.file_size or 0)


def copy_files(run: RunRecord, target: Path, tracking_uri: str | None) -> None:
    """Copy the artifacts of a run to a new folder; without artifacts there is no folder."""
    folder = local_artifact_folder(run.artifact_uri) if run.artifact_uri else None
    if folder is not None and folder.is_dir():
        shutil.copytree(folder, target)
    elif folder is None and list_files(run, tracking_uri):
        from llmctl.monitor.read.client import translated_store_errors

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        target.mkdir()
        uri = store_uri(tracking_uri)
        with translated_store_errors(uri):
            open_client(uri).download_artifacts(run.run_id, "", str(target))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to `target` if the block ends without an error.

    Raises:
        ConfigError: `target` exists and is not an empty folder, or its parent does not exist.
        LlmctlError: the disk cannot be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} exists already", hint="choose a new or empty folder")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target.absolute().parent} is not a folder", hint="create it first")
    try:
        with atomic_folder(target) as folder:
            yield folder
    except OSError as error:
        raise LlmctlError(f"{target} cannot be written: {error}") from error


def write_export(
    run: RunRecord,
    values: Mapping[str, Any],
    curves: Mapping[str, Sequence[MetricPoint]],
    target: Path,
    tracking_uri: str | None,
) -> None:
    """Write a whole run to a new folder, which appears complete or not at all.

    `run.json` holds `values`; `params.json`, `tags.json` and `metrics.json` its parts;
    `metrics.csv` every point of `curves`; `artifacts/` the artifacts, if there are any.

    Raises:
        ConfigError, LlmctlError: as `new_folder`; or the store failed.
    """
    with new_folder(target) as folder:
        _write_json(folder / "run.json", values)
        _write_json(folder / "params.json", dict(run.params))
        _write_json(folder / "tags.json", dict(run.tags))
        _write_json(folder / "metrics.json", values["metrics"])
        with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("metric", "step", "time", "value"))
            for name, points in curves.items():
                rows.writerows((name, point.step, point.time, point.value) for point in points)
        copy_files(run, folder / "artifacts", tracking_uri)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
