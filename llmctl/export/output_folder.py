"""The output folder of a merge: built in a staging folder and renamed, with its side files."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llmctl.atomic_files import atomic_folder
from llmctl.engine.models import model_folder, store
from llmctl.engine.models.adapter_metadata import ADAPTER_CONFIG
from llmctl.engine.models.provenance import PROVENANCE_FILE
from llmctl.errors import ConfigError

_TOKENIZER_FILES = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
)
"""Prefixes of a tokenizer's file names."""
_NOT_COPIED = (
    "config.json",
    "model.safetensors.index.json",
    store.MANIFEST,
    PROVENANCE_FILE,
    ADAPTER_CONFIG,
)


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder may be written.

    Raises:
        ConfigError: it is not empty, and must not be overwritten.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="-o names a folder")
    if not overwrite:
        raise ConfigError(
            f"{folder} is not empty",
            hint="--overwrite deletes its content; or choose another folder",
        )
    if not (folder / PROVENANCE_FILE).is_file():
        raise ConfigError(
            f"{folder} was not written by llmctl, so --overwrite does not delete it",
            hint="delete it yourself, or choose another folder",
        )


@contextmanager
def staged_folder(final: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a staging folder of the same name; it replaces `final` unless the block raises.

    Raises:
        ConfigError: as `check_output_folder`, or the folder cannot be created.
    """
    check_output_folder(final, overwrite=overwrite)
    with ExitStack() as stack:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            built = stack.enter_context(atomic_folder(final))
        except OSError as error:
            raise ConfigError(
                f"cannot create a folder in {final.parent}: {error.strerror}"
            ) from error
        yield built


def copy_side_files(base: Path, adapter: Path, target: Path) -> None:
    """Copy the files beside the weights: the base's, and the tokenizer of the adapter."""
    for name in model_folder.wanted_files(model_folder.file_names(base), allow_pickle=False):
        if not name.endswith(".safetensors") and name not in _NOT_COPIED:
            _copy(base / name, target)
    for name in sorted(model_folder.file_names(adapter)):
        if name.startswith((*_TOKENIZER_FILES, "generation_config")) or name.endswith(
            (".model", ".tiktoken")
        ):
            _copy(adapter / name, target)


def _copy(file: Path, target: Path) -> None:
    # Without permissions: files in a cache may be read-only.
    shutil.copyfile(file, target / file.name)
