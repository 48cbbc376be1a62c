"""Data sources named by the user: files, folders, hub datasets, or several of them."""

import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from llmctl.data.io.text_encoding import open_utf8
from llmctl.data.rows.row_errors import DataError
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError

DataSource = str | Path | Sequence[str | Path]
FileKind = Literal["json", "csv", "parquet", "text", "hub"]

_SUFFIXES: dict[str, FileKind] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
_NOT_DATA = {"readme", "license", "licence", "notice", "changelog", "sources", "citation"}
_METADATA = {"dataset_info.json", "dataset_infos.json", "state.json"}
"""Metadata files of LLaMA-Factory and `datasets`."""
_CLEAN_OUTPUTS = (".rejected.jsonl", ".report.json")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>\w+))?")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, or one dataset on the hub."""

    name: str
    """As the user wrote it; for a file of a folder, the folder's name and the path below it."""
    kind: FileKind

    @property
    def stem(self) -> str:
        """The name without folders and data suffixes; for a hub dataset, the whole id."""
        if self.kind == "hub":
            return self.name
        path = Path(self.name)
        if path.suffix.lower() == ".gz":
            path = path.with_suffix("")
        return path.stem if path.suffix.lower() in _SUFFIXES else path.name

    @property
    def location(self) -> str:
        """Absolute path, or hub id."""
        return self.name if self.kind == "hub" else str(Path(self.name).expanduser().resolve())


def list_source_files(source: DataSource) -> list[SourceFile]:
    """List the files of a source; those of a folder are sorted by name.

    Raises:
        ConfigError: the file, folder or hub id does not exist, is not a regular file, or is of
            unknown kind.
        DataError: a folder has no data files.
    """
    if not isinstance(source, str | Path):
        return [file for single in source for file in list_source_files(single)]
    path = Path(source).expanduser()
    if path.is_dir():
        files, _ = _list_folder(path)
        if not files:
            raise DataError(
                f"the folder {source} has no data files",
                hint=f"known suffixes: {', '.join(_SUFFIXES)}, each also with .gz",
            )
        return files
    if path.is_file():
        return [SourceFile(str(source), _kind_by_suffix(path) or _kind_by_content(path))]
    if path.exists():
        raise ConfigError(
            f"{source} is not a regular file",
            hint="rows may be read more than once: write them to a file first",
        )
    if _HUB_ID.fullmatch(str(source)) and _kind_by_suffix(path) is None:
        return [SourceFile(str(source), "hub")]
    raise ConfigError(f"there is no file {source}", hint=_missing_file_hint(path))


def skipped_files(source: DataSource) -> list[str]:
    """List the files of the source's folders that are not read.

    These are readmes, licences, metadata, and the rejected rows and reports of `data clean`.
    """
    if not isinstance(source, str | Path):
        return [name for single in source for name in skipped_files(single)]
    path = Path(source).expanduser()
    return _list_folder(path)[1] if path.is_dir() else []


def refuse_output_in_source(source: DataSource, *outputs: Path) -> None:
    """Refuse to write into a folder that is read, where the output would become input.

    Raises:
        ConfigError: an output is in a folder of the source.
    """
    if not isinstance(source, str | Path):
        for single in source:
            refuse_output_in_source(single, *outputs)
        return
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return
    for output in outputs:
        if output.expanduser().resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{output} is in the folder {source}, whose files are read as rows",
                hint="write it outside the folder, or name the folder's files one by one",
            )


def parse_hub_id(name: str) -> tuple[str, str | None, str | None]:
    """Split `owner/name[@revision][:split]` into its parts."""
    found = _HUB_ID.fullmatch(name)
    assert found is not None
    return found["name"], found["revision"], found["split"]


def open_text(path: Path, name: str) -> tuple[BinaryIO, BinaryIO]:
    """Open a file for reading as UTF-8, decompressed if it is gzip, as `open_utf8` describes.

    Args:
        name: of the file, for the log.

    Returns:
        the content, and the file on disk, whose position is the progress in bytes. Closing the
        first closes both.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        on_disk = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    stream: BinaryIO = on_disk
    if on_disk.peek(2)[:2] == b"\x1f\x8b":
        stream = _Decompressed(on_disk)
    return open_utf8(stream, name), on_disk


class _Decompressed(io.BufferedReader):
    """A buffered reader of a gzip file; closes the file itself too."""

    def __init__(self, on_disk: BinaryIO) -> None:
        super().__init__(_TolerantGzip(on_disk), 2**18)
        self._on_disk = on_disk

    def close(self) -> None:
        super().close()
        self._on_disk.close()


class _TolerantGzip(io.RawIOBase):
    """The content of a gzip file; a truncated file raises after all readable bytes are returned."""

    def __init__(self, on_disk: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=on_disk)
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and self._error is None:
            try:
                chunk = self._file.read1(len(buffer) - filled)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._error = error
                break
            if not chunk:
                return filled
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if self._error is not None and not filled:
            raise self._error
        return filled


def _kind_by_suffix(path: Path) -> FileKind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _kind_by_content(path: Path) -> FileKind:
    stream, _ = open_text(path, str(path))
    with stream:
        start = stream.read(4096).lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"{", b"[")):
        return "json"
    raise ConfigError(
        f"{path} is of unknown kind",
        hint=f"rename it with one of the suffixes {', '.join(_SUFFIXES)}, each also with .gz",
    )


def _list_folder(folder: Path) -> tuple[list[SourceFile], list[str]]:
    """Return the data files below a folder, and the names of its other files."""
    files, others = [], []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        kind = _kind_by_suffix(path)
        is_metadata = path.name in _METADATA or path.name.split(".")[0].lower() in _NOT_DATA
        is_metadata |= path.name.endswith(_CLEAN_OUTPUTS)
        if kind is None or path.suffix == ".md" or is_metadata:
            others.append(str(path))
        else:
            files.append(SourceFile(str(path), kind))
    return files, others


def _missing_file_hint(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    near = did_you_mean(path.name, (entry.name for entry in folder.iterdir()))
    if near:
        return f"did you mean {folder / near}?"
    return "give a file, a folder, or the hub id of a dataset (owner/name)"
