"""Where prepared datasets are kept, so that the same rows are tokenised once.

`datasets/<key>` in the store is a finished entry; it is built in `datasets/.aside/<key>` and gets
its name by one rename. Whoever builds a key holds its lock, which the operating system lets go when
the process dies.
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
"""Past this, entries that nothing has opened for `MIN_IDLE_DAYS` go, the longest unused first."""
MIN_IDLE_DAYS = 7
_SIZES = "sizes.json"
"""The last file written: the size of every other one."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


def get_or_build(
    key: str, build: Callable[[Path], None], progress: ProgressCallback = ignore_progress
) -> tuple[Path, bool]:
    """Return the folder of an entry and whether it was there; if not, `build` fills an empty one.

    Raises:
        LlmctlError: the disk is full, or the store cannot be written.
    """
    home = _home()
    folder = home / key
    try:
        with _locked(home, key, progress):
            found = _whole(folder)
            if found:
                os.utime(folder)
            else:
                _make(folder, home / ".aside" / key, build)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise LlmctlError(
            f"the prepared dataset cannot be kept in {home}: {error.strerror}",
            hint="free some space there, or set LLMCTL_HOME to a folder that has it",
        ) from error
    if not found:
        evict(keep=key)
    return folder, found


def _make(folder: Path, staging: Path, build: Callable[[Path], None]) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # of a killed process
    staging.mkdir(parents=True)
    try:
        with atomic_folder(folder, staging=staging) as built:  # replaces a damaged one
            build(built)
            sizes = {file.name: file.stat().st_size for file in built.iterdir()}
            (built / _SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def evict(
    *, keep: str = "", limit_bytes: int = MAX_BYTES, days: float = MIN_IDLE_DAYS
) -> list[str]:
    """Delete the longest unused entries while all are larger than `limit_bytes`; return their keys.

    Entries used within `days` stay: a run may be reading them. What dead processes left unfinished
    goes too.
    """
    from filelock import FileLock, Timeout

    home = _home()
    entries = [p for p in home.iterdir() if p.is_dir() and not p.name.startswith(".")]
    sizes = {p: sum(f.stat().st_size for f in p.iterdir()) for p in entries}
    total, gone = sum(sizes.values()), []
    for folder in sorted(entries, key=lambda p: p.stat().st_mtime):
        if total <= limit_bytes or time.time() - folder.stat().st_mtime < days * 86400:
            break
        if folder.name == keep:
            continue
        grave = home / ".aside" / folder.name
        with suppress(OSError):  # open in another process, where that forbids a rename
            grave.parent.mkdir(exist_ok=True)
            folder.rename(grave)
            total -= sizes[folder]
            gone.append(folder.name)
    for leftover in (home / ".aside").glob("*"):
        with suppress(Timeout), FileLock(_lock_file(home, leftover.name), timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)
    return gone


def _home() -> Path:
    """Return the absolute folder of all entries; `fetch` makes it."""
    return store_home() / "datasets"


@contextmanager
def _locked(home: Path, key: str, progress: ProgressCallback) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_file(home, key))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(Progress("waiting for another llmctl that is tokenising the same rows"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_file(home: Path, key: str) -> Path:
    # Never deleted: a lock on a file that another process replaces protects nobody.
    locks = home / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{key}.lock"


def _whole(folder: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
