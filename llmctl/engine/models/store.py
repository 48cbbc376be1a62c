"""The store of downloaded models, with atomic installation.

`models/<name>` is a complete model. Models under construction are in `models/.aside/<name>/`, on
the same file system, and are installed by one rename. The process that builds `<name>` holds its
lock, which the operating system releases when the process ends; staging folders without a holder
of the lock are left over and deleted.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from llmctl.atomic_files import install_folder
from llmctl.config import store_home
from llmctl.engine.models.model_folder import disk_bytes, file_names, missing_part
from llmctl.errors import ModelNotFoundError
from llmctl.types import Progress, ProgressCallback, ignore_progress

MANIFEST = "llmctl-model.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The origin of a stored model, in its folder as `llmctl-model.json`."""

    name: str
    repo: str
    """The hub repository of the weights, or of those that they were converted from."""
    source: str
    revision: str
    sha256: str
    """Of the downloaded archive."""
    licence: str
    created: str
    """UTC, ISO 8601."""
    bytes: int
    files: dict[str, int]
    """Every file of the model with its size in bytes."""

    @classmethod
    def of(cls, folder: Path, **origin: str) -> Self:
        """Describe a complete folder; `origin` has the fields that do not follow from its files."""
        sizes = {name: (folder / name).stat().st_size for name in sorted(file_names(folder))}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(created=created, bytes=sum(sizes.values()), files=sizes, **origin)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the manifest of a folder; `None` for a model that the user has put there."""
        try:
            fields: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return cls(**fields)
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def models_folder() -> Path:
    """Return the parent folder of the models. It may not exist yet."""
    return store_home() / "models"


def names() -> list[str]:
    """List the models in the store, complete or not."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def find(name: str) -> Path:
    """Return the folder of a complete model in the store.

    Raises:
        ModelNotFoundError: the store has no such model, or it is damaged.
    """
    folder = models_folder() / name
    # Only listed names are used, so a name cannot be a path that leaves the store.
    if name not in names():
        raise ModelNotFoundError(f"not in {models_folder()}")
    manifest = Manifest.read(folder)
    damaged = (
        min((f for f, size in manifest.files.items() if _size(folder / f) != size), default=None)
        if manifest
        else missing_part(folder)
    )
    if damaged is not None:
        raise ModelNotFoundError(
            f"the copy in {folder} is damaged: {damaged} is missing or has another size"
        )
    return folder


@contextmanager
def exclusive_lock(name: str, progress: ProgressCallback = ignore_progress) -> Iterator[None]:
    """Hold the lock of `name` across processes and threads; wait until it is free."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(Progress(f"waiting for another process that installs {name}"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging_folder(name: str) -> Iterator[Path]:
    """Provide an empty folder in which to build `name`, and delete it at the end."""
    parent = _staging_root() / name
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process may build there
            parent.rmdir()


def install(folder: Path, name: str) -> Path:
    """Move a complete folder with its manifest from staging into the store.

    The caller holds the lock of `name`. A model of that name is replaced.
    """
    final = models_folder() / name
    install_folder(folder, final)
    return final


def remove(name: str) -> int:
    """Delete a stored model and return the number of bytes freed.

    If it is a symbolic link, only the link is deleted.

    Raises:
        ModelNotFoundError: the store has no such model.
    """
    if name not in names():
        raise ModelNotFoundError(f"not in {models_folder()}")
    folder = models_folder() / name
    with exclusive_lock(name):
        freed = 0 if folder.is_symlink() else disk_bytes(folder)
        _delete(folder, name)
    return freed


def clean_staging() -> None:
    """Delete staging folders of ended processes."""
    from filelock import FileLock, Timeout

    if not _staging_root().is_dir():
        return
    for folder in _staging_root().iterdir():
        try:
            with FileLock(_lock_file(folder.name), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue


def _delete(folder: Path, name: str) -> None:
    """Delete a model atomically."""
    if folder.is_symlink():
        folder.unlink()
        return
    with staging_folder(name) as staging:
        folder.rename(staging / "deleted")


def _staging_root() -> Path:
    # The name is that of earlier releases, so that their left-over folders are deleted too.
    return models_folder() / ".aside"


def _lock_file(name: str) -> Path:
    # Never deleted: a lock on a file that another process has replaced excludes nobody.
    folder = models_folder() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
