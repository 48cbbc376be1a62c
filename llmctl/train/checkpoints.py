"""Checkpoints in the output folder, and the checks before a run may write there.

`checkpoint-<step>` is always complete: it is written to a staging folder and renamed. The newest
checkpoints and the best one are kept.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llmctl.atomic_files import install_folder, write_atomically
from llmctl.errors import ConfigError

LOCK_FILE = "run.lock.json"
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_STAGING = ".writing"
_BUSY = ".lock"
_NO_INPUTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved training state."""

    step: int
    path: Path


class Checkpoints:
    """The checkpoints of one output folder.

    Args:
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def all(self) -> list[Checkpoint]:
        """Return the complete checkpoints, the oldest first."""
        checkpoints = []
        for path in self._folder.glob("checkpoint-*"):
            name = _NAME.fullmatch(path.name)
            if name and (path / STATE_FILE).is_file():
                checkpoints.append(Checkpoint(int(name[1]), path))
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)

    def newest(self) -> Checkpoint | None:
        return next(reversed(self.all()), None)

    def at(self, step: int) -> Checkpoint | None:
        return next((c for c in self.all() if c.step == step), None)

    @contextmanager
    def staging(self, *, owner: bool) -> Iterator[Path]:
        """Yield a staging folder. The `owner` empties it first, and removes it on failure."""
        staging = self._folder / _STAGING
        if owner:
            shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True, exist_ok=True)
            yield staging
        except BaseException:
            if owner:
                shutil.rmtree(staging, ignore_errors=True)
            raise

    def commit(self, step: int, best: int | None) -> Path:
        """Move the staged checkpoint into place; delete old ones except the best.

        Args:
            best: step of the best evaluation.
        """
        staging = self._folder / _STAGING
        final = self._folder / f"checkpoint-{step}"
        install_folder(staging / final.name, final)
        shutil.rmtree(staging, ignore_errors=True)
        self._delete_old(best)
        return final

    def _delete_old(self, best: int | None) -> None:
        for checkpoint in self.all()[: -self._keep]:
            if checkpoint.step != best:
                # Renamed first: a half-deleted checkpoint must not look like a complete one.
                old = self._folder / f".old-{checkpoint.step}"
                checkpoint.path.rename(old)
                shutil.rmtree(old, ignore_errors=True)


def check_output(folder: Path, *, overwrite: bool, inputs: Mapping[str, str] = _NO_INPUTS) -> None:
    """Check whether a new run may write to a folder; changes nothing.

    Args:
        inputs: paths that the run reads -> their options. Names that are not local paths are
            ignored.

    Raises:
        ConfigError: the folder is not empty, or holds an input of the run.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="--output names a folder")
    for name, what in inputs.items():
        if _is_inside(Path(name).expanduser(), folder):
            raise ConfigError(
                f"{what} {name} is in the output folder {folder}, which a new run empties",
                hint="choose another --output",
            )
    if not folder.is_dir() or not _entries(folder):
        return
    is_run = (folder / LOCK_FILE).is_file()
    if not overwrite:
        resume = ", --resume continues the run in it" if is_run else ""
        raise ConfigError(
            f"{folder} is not empty",
            hint=f"--overwrite deletes its content{resume}; or choose another --output",
        )
    if not is_run:
        raise ConfigError(
            f"{folder} does not hold a run of llmctl, so --overwrite does not delete it",
            hint="delete it yourself, or choose another --output",
        )


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether emptying a folder would delete a path: its target, or a symbolic link to it."""
    if not path.exists():
        return False
    paths, folders = ((Path(os.path.abspath(p)), p.resolve()) for p in (path, folder))
    return any(f in (p, *p.parents) for p in paths for f in folders)


def empty_output(folder: Path, *, overwrite: bool) -> None:
    """Empty a folder for a new run. Raises as `check_output`."""
    check_output(folder, overwrite=overwrite)
    for entry in _entries(folder):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.name != _BUSY]


@contextmanager
def lock_output(folder: Path) -> Iterator[None]:
    """Create the output folder, and hold its lock while the block runs.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _BUSY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another llmctl is training in {folder}",
            hint="wait until it ends, or choose another --output",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk. Torch and safetensors report that only as text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return any(
        phrase in text
        for phrase in (
            "No space left",
            "unexpected pos",
            "PytorchStreamWriter failed",
            "os error 28",
        )
    )


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    write_atomically(path, text + "\n")
