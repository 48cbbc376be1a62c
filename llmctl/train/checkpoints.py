"""Which states of a training lie on the disk, whole, so that it can go on from there?

`checkpoint-<step>` in the output folder is always whole: it is written beside and gets its name by
one rename. The newest ones are kept, and the best one.
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
_ASIDE = ".writing"
_BUSY = ".lock"
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One state on the disk."""

    step: int
    path: Path


class Checkpoints:
    """The checkpoints of one output folder."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def all(self) -> list[Checkpoint]:
        """Return them, the oldest first."""
        found = []
        for path in self._folder.glob("checkpoint-*"):
            name = _NAME.fullmatch(path.name)
            if name and (path / STATE_FILE).is_file():
                found.append(Checkpoint(int(name[1]), path))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def newest(self) -> Checkpoint | None:
        return next(reversed(self.all()), None)

    def at(self, step: int) -> Checkpoint | None:
        return next((c for c in self.all() if c.step == step), None)

    @contextmanager
    def staging(self, *, owner: bool) -> Iterator[Path]:
        """Lend a folder to write in. `owner` empties it first, and clears it away on failure."""
        aside = self._folder / _ASIDE
        if owner:
            shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True, exist_ok=True)
            yield aside
        except BaseException:
            if owner:
                shutil.rmtree(aside, ignore_errors=True)
            raise

    def commit(self, step: int, best: int | None) -> Path:
        """Give what was written aside its name; let go of those that are not kept."""
        aside = self._folder / _ASIDE
        final = self._folder / f"checkpoint-{step}"
        install_folder(aside / final.name, final)
        shutil.rmtree(aside, ignore_errors=True)
        self._tidy(best)
        return final

    def _tidy(self, best: int | None) -> None:
        for checkpoint in self.all()[: -self._keep]:
            if checkpoint.step != best:
                # Under another name first: half a checkpoint must not look like one.
                gone = self._folder / f".old-{checkpoint.step}"
                checkpoint.path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)


def check_output(folder: Path, *, overwrite: bool, inputs: Mapping[str, str] = _NOTHING) -> None:
    """Say early whether a new run may have a folder; touches nothing.

    Args:
        inputs: what the run reads -> what it is. A name that is no path here is left alone.

    Raises:
        ConfigError: there is something in it already, or the run would read what lies in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="--output names a folder")
    for name, what in inputs.items():
        if _lies_in(Path(name).expanduser(), folder):
            raise ConfigError(
                f"{what} {name} lies in the output folder {folder}, which a new run empties",
                hint="choose another --output",
            )
    if not folder.is_dir() or not _entries(folder):
        return
    ours = (folder / LOCK_FILE).is_file()
    if not overwrite:
        goes_on = ", --resume goes on with the run in it" if ours else ""
        raise ConfigError(
            f"{folder} is not empty, and nothing in it is overwritten unasked",
            hint=f"--overwrite deletes what is there{goes_on}; or choose another --output",
        )
    if not ours:
        raise ConfigError(
            f"{folder} holds no run of llmctl, so --overwrite leaves it alone",
            hint="delete it yourself, or choose another --output",
        )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether emptying a folder would take a path away: the thing itself, or the link to it."""
    if not path.exists():
        return False
    places, folders = ((Path(os.path.abspath(p)), p.resolve()) for p in (path, folder))
    return any(f in (p, *p.parents) for p in places for f in folders)


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
    """Make a folder if need be, and keep other processes from training in it.

    Raises:
        ConfigError: one does, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _BUSY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another llmctl is training in {folder}",
            hint="wait for it, or choose another --output",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def is_disk_full(error: BaseException) -> bool:
    """Whether the disk is full. Torch and safetensors say so only in their text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return any(
        sign in text
        for sign in ("No space left", "unexpected pos", "PytorchStreamWriter failed", "os error 28")
    )


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    write_atomically(path, text + "\n")
