"""Files and folders that appear under their names complete or not at all.

A file is written to a temporary name in its own folder and renamed over the old one. A folder is
built in a staging folder of the same file system and renamed last. The data is on the disk before
the name is, so that a crash or a power failure leaves the old content or the new one. An exception,
Ctrl-C included, leaves the old content and no temporary files.
"""

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE_S = 24 * 3600.0
"""A temporary file without changes for this time belongs to a killed process."""
_PREFIX_CHARS = 40
"""Characters of the file name in the temporary name; the length of names is limited."""


@contextmanager
def atomic_path(path: Path, *, mode: int | None = None, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` if the block ends without an error.

    Leftovers of processes killed while they wrote the same file are deleted after a day.

    Args:
        path: the final path. An existing file is replaced.
        mode: permissions of the file, such as 0o600; by default those of the umask.
        sync: wait until the data is on the disk. False is for files that must survive the death of
            the process, but not a power failure: a wait takes about 15 ms.

    Raises:
        OSError: the file cannot be written, or the block wrote none.
    """
    prefix = f".{path.name[:_PREFIX_CHARS]}."
    _delete_stale(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{secrets.token_hex(4)}.tmp")
    try:
        if mode is not None:
            temporary.touch(mode=mode)
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        _sync_folder(path.parent)


def write_atomically(path: Path, text: str, *, mode: int | None = None, sync: bool = True) -> None:
    """Write a text file in UTF-8. Arguments and errors as `atomic_path`.

    Bytes of a path that are not UTF-8 become `\\udcXX`, which JSON parsers read as the same text.
    """
    with atomic_path(path, mode=mode, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_folder(path: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; rename it to `path` if the block ends without an error.

    Args:
        path: the final path. A folder that exists is replaced.
        staging: an existing folder on the same file system to build in, which the caller deletes;
            by default a temporary sibling of `path`, which is deleted at the end.

    Raises:
        OSError: the folder cannot be written.
    """
    own = None
    if staging is None:
        prefix = f".{path.name[:_PREFIX_CHARS]}."
        own = staging = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        built = staging / path.name
        built.mkdir()
        yield built
        install_folder(built, path)
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def install_folder(built: Path, path: Path, *, sync: bool = True) -> None:
    """Rename a finished folder to `path`, in place of a folder or link that may be there.

    The old folder is moved beside `built` first and deleted last; it is moved back if the second
    rename fails.

    Args:
        built: a folder on the same file system.
        path: the final path.
        sync: write all files to the disk first. False is for very many files that are verified
            or built again after a crash.

    Raises:
        OSError: the folder cannot be renamed.
    """
    if sync:
        for file in built.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync(file)
    old = None
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            old = built.with_name(f".{path.name[:_PREFIX_CHARS]}.{secrets.token_hex(4)}.old")
            path.rename(old)
        built.rename(path)
    except BaseException:
        if old is not None and old.exists() and not path.exists():
            old.rename(path)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(path.parent)


def _delete_stale(folder: Path, prefix: str) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                        os.unlink(entry.path)


def _sync(file: Path) -> None:
    with file.open("rb" if os.name == "posix" else "rb+") as stream:  # Windows needs write access
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk. Not possible on Windows and some file systems."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
