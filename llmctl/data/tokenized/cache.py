"""The cache of tokenised datasets on disk.

`datasets/<key>` in the store is a complete entry. It is built in `datasets/.aside/<key>` and
renamed when complete. The builder holds a file lock on the key, which the operating system releases
if the process dies.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmctl.atomic_files import atomic_folder
from llmctl.config import store_home
from llmctl.errors import LlmctlError
from llmctl.types import Progress, ProgressCallback, ignore_progress

MAX_BYTES = 10 * 10**9
"""Above this size, entries unused for `MIN_IDLE_DAYS` are evicted, least recently used first."""
MIN_IDLE_DAYS = 7
_SIZES = "sizes.json"
"""The last file written, with the sizes of all others."""
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


def get_or_build(
    key: str, build: Callable[[Path], None], progress: ProgressCallback = ignore_progress
) -> tuple[Path, bool]:
    """Return the folder of an entry and whether it was cached; if not, `build` fills a new folder.

    Raises:
        LlmctlError: the disk is full, or the store cannot be written.
    """
    home = _home()
    folder = home / key
    try:
        with _locked(home, key, progress):
            cached = _is_complete(folder)
            if cached:
                os.utime(folder)
            else:
                _build(folder, home / ".aside" / key, build)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise LlmctlError(
            f"the tokenised dataset cannot be written to {home}: {error.strerror}",
            hint="free some space there, or set LLMCTL_HOME to a folder with enough space",
        ) from error
    if not cached:
        evict(keep=key)
    return folder, cached


def _build(folder: Path, staging: Path, build: Callable[[Path], None]) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed process
    staging.mkdir(parents=True)
    try:
        with atomic_folder(folder, staging=staging) as new:  # replaces a damaged entry
            build(new)
            sizes = {file.name: file.stat().st_size for file in new.iterdir()}
            (new / _SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def evict(
    *, keep: str = "", limit_bytes: int = MAX_BYTES, days: float = MIN_IDLE_DAYS
) -> list[str]:
    """Delete the least recently used entries while the total size exceeds `limit_bytes`.

    Entries used within `days` are kept, since a run may be reading them. Unfinished entries of
    killed processes are deleted too.

    Returns:
        the keys of the deleted entries.
    """
    from filelock import FileLock, Timeout

    home = _home()
    entries = [p for p in home.iterdir() if p.is_dir() and not p.name.startswith(".")]
    sizes = {p: sum(f.stat().st_size for f in p.iterdir()) for p in entries}
    total, evicted = sum(sizes.values()), []
    for folder in sorted(entries, key=lambda p: p.stat().st_mtime):
        if total <= limit_bytes or time.time() - folder.stat().st_mtime < days * 86400:
            break
        if folder.name == keep:
            continue
        deleted = home / ".aside" / folder.name
        with suppress(OSError):  # open in another process, on a system that forbids the rename
            deleted.parent.mkdir(exist_ok=True)
            folder.rename(deleted)
            total -= sizes[folder]
            evicted.append(folder.name)
    for leftover in (home / ".aside").glob("*"):
        with suppress(Timeout), FileLock(_lock_file(home, leftover.name), timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)
    return evicted


def _home() -> Path:
    """Return the folder of all entries; `get_or_build` creates it."""
    return store_home() / "datasets"


@contextmanager
def _locked(home: Path, key: str, progress: ProgressCallback) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(home, key))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(Progress("waiting for another llmctl process that tokenises the same rows"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_file(home: Path, key: str) -> Path:
    # Never deleted: a lock on a deleted file excludes no other process.
    locks = home / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{key}.lock"


def _is_complete(folder: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
