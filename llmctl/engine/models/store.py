"""Where models fetched by llmctl lie, and how they get there whole or not at all.

`models/<name>` is a finished model. Everything unfinished lies in `models/.aside/<name>/`, on the
same file system, and becomes a model by one rename. Whoever builds `<name>` holds its lock, which
the operating system lets go when the process dies; what lies aside without a lock is rubbish.
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

from llmctl.config import store_home
from llmctl.engine.models.model_folder import disk_bytes, file_names, missing_part
from llmctl.errors import ModelNotFoundError
from llmctl.types import Progress, ProgressCallback, ignore_progress

MANIFEST = "llmctl-model.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where a stored model came from, written beside it as `llmctl-model.json`."""

    name: str
    repo: str
    """The hub repository whose weights these are, or were made from."""
    source: str
    revision: str
    sha256: str
    """Of the archive that was downloaded."""
    licence: str
    created: str
    """UTC, ISO 8601."""
    bytes: int
    files: dict[str, int]
    """Every file of the model and its size in bytes."""

    @classmethod
    def of(cls, folder: Path, **origin: str) -> Self:
        """Describe a finished folder; `origin` fills the fields that its files cannot tell."""
        sizes = {name: (folder / name).stat().st_size for name in sorted(file_names(folder))}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(created=created, bytes=sum(sizes.values()), files=sizes, **origin)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the folder's manifest; a model that a person put there has none."""
        try:
            fields: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return cls(**fields)
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def models_folder() -> Path:
    """Return the folder that holds one folder per model. It may not exist yet."""
    return store_home() / "models"


def names() -> list[str]:
    """List the models in the store, whole or not."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def find(name: str) -> Path:
    """Return the folder of a stored model that is whole.

    Raises:
        ModelNotFoundError: the store has no such model, or it is damaged; the message says which.
    """
    folder = models_folder() / name
    # Only a listed name is looked up, so no name can lead out of the store.
    if name not in names():
        raise ModelNotFoundError(f"not in {models_folder()}")
    manifest = Manifest.read(folder)
    damaged = (
        min((f for f, size in manifest.files.items() if _size(folder / f) != size), default=None)
        if manifest
        else missing_part(folder)
    )
    if damaged is not None:
        raise ModelNotFoundError(f"the copy in {folder} is damaged: {damaged} is not as it was")
    return folder


@contextmanager
def exclusive_lock(name: str, progress: ProgressCallback = ignore_progress) -> Iterator[None]:
    """Hold `name` against every other process and thread; wait for whoever holds it now."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(Progress(f"waiting for another llmctl that is fetching {name}"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging_folder(name: str) -> Iterator[Path]:
    """Lend an empty folder to build `name` in; it is gone afterwards, however that ends."""
    parent = _aside_folder() / name
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others may build there
            parent.rmdir()


def install(folder: Path, name: str) -> Path:
    """Move a finished folder from aside into the store; its manifest must be written.

    The caller holds `name`. What lay under that name before is dropped.
    """
    final = models_folder() / name
    if final.exists():
        _drop(final, name)
    return folder.rename(final)


def remove(name: str) -> int:
    """Delete a stored model and return how many bytes that freed.

    Of a link that a person put in its place the link goes, and what it points to stays.

    Raises:
        ModelNotFoundError: the store has no such model.
    """
    if name not in names():
        raise ModelNotFoundError(f"not in {models_folder()}")
    folder = models_folder() / name
    with exclusive_lock(name):
        freed = 0 if folder.is_symlink() else disk_bytes(folder)
        _drop(folder, name)
    return freed


def clean_staging() -> None:
    """Delete what dead runs left aside; a run that is still alive keeps its own."""
    from filelock import FileLock, Timeout

    if not _aside_folder().is_dir():
        return
    for leftover in _aside_folder().iterdir():
        try:
            with FileLock(_lock_file(leftover.name), timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except Timeout:
            continue


def _drop(folder: Path, name: str) -> None:
    """Delete a model so that no moment shows half of it."""
    if folder.is_symlink():
        folder.unlink()
        return
    with staging_folder(name) as grave:
        folder.rename(grave / "dropped")


def _aside_folder() -> Path:
    return models_folder() / ".aside"


def _lock_file(name: str) -> Path:
    # Never deleted: a lock on a file that another process replaces protects nobody.
    folder = models_folder() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
