"""How does a folder come to be whole or not at all? It is built aside and gets its name last."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.engine.models.provenance import PROVENANCE_FILE
from llmctl.errors import ConfigError


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written.

    Raises:
        ConfigError: it holds something, and may not be or is not to be overwritten.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="-o names a folder")
    if not overwrite:
        raise ConfigError(
            f"{folder} is not empty, and nothing in it is overwritten unasked",
            hint="--overwrite deletes what is there; or choose another folder",
        )
    if not (folder / PROVENANCE_FILE).is_file():
        raise ConfigError(
            f"{folder} holds nothing that llmctl made, so --overwrite leaves it alone",
            hint="delete it yourself, or choose another folder",
        )


@contextmanager
def staged_folder(final: Path, *, overwrite: bool) -> Iterator[Path]:
    """Lend a folder to build in, of the same name; it becomes `final` if all goes well.

    Raises:
        ConfigError: as `check_output_folder`, or it cannot be made there.
    """
    check_output_folder(final, overwrite=overwrite)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise ConfigError(f"cannot make a folder in {final.parent}: {error.strerror}") from error
    built, old = aside / final.name, aside / ".old"
    built.mkdir()
    try:
        yield built
        if final.exists():
            final.rename(old)
        try:
            built.rename(final)
        except BaseException:
            if old.exists():
                old.rename(final)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
