"""Which files does a person mean: a file, a folder, a hub id, or several?"""

import difflib
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from llmctl.data.rows.row_errors import DataError
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
_NO_DATA = {"readme", "license", "licence", "notice", "changelog", "sources", "citation"}
_METADATA = {"dataset_info.json", "dataset_infos.json", "state.json"}
"""What LLaMA-Factory and `datasets` write beside the rows."""
_BESIDE_CLEAN = (".rejected.jsonl", ".report.json")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>\w+))?")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file, or one dataset on the hub."""

    name: str
    """As the person wrote it; within a folder, that folder's name and the way from there."""
    kind: FileKind

    @property
    def stem(self) -> str:
        """The name without folders and the suffix of its kind; a hub id whole."""
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
    """List what a source consists of, the files of a folder in the order of their names.

    Raises:
        ConfigError: there is no such file, folder or hub id, or its kind is not known or a device.
        DataError: a folder holds nothing to read.
    """
    if not isinstance(source, str | Path):
        return [part for single in source for part in list_source_files(single)]
    path = Path(source).expanduser()
    if path.is_dir():
        parts, _ = _look_into(path)
        if not parts:
            raise DataError(
                f"the folder {source} holds no file of examples",
                hint=f"known suffixes: {', '.join(_SUFFIXES)}, each also with .gz",
            )
        return parts
    if path.is_file():
        return [SourceFile(str(source), _kind(path) or _look(path))]
    if path.exists():
        raise ConfigError(
            f"{source} is no regular file",
            hint="rows are read more than once: write them to a file, and name that",
        )
    if _HUB_ID.fullmatch(str(source)) and _kind(path) is None:
        return [SourceFile(str(source), "hub")]
    raise ConfigError(f"there is no file {source}", hint=_near(path))


def skipped_files(source: DataSource) -> list[str]:
    """Name the files of the source's folders that are not read.

    They are readmes, licences, metadata, and what `data clean` writes beside the rows that stay.
    """
    if not isinstance(source, str | Path):
        return [name for single in source for name in skipped_files(single)]
    path = Path(source).expanduser()
    return _look_into(path)[1] if path.is_dir() else []


def refuse_output_in_source(source: DataSource, *outputs: Path) -> None:
    """Refuse to write into a folder that is read: the next reader would take rows twice.

    Raises:
        ConfigError: an output lies in a folder of the source.
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
                f"{output} lies in the folder {source}, whose files are read as rows",
                hint="write it beside the folder, or name the folder's files one by one",
            )


def parse_hub_id(name: str) -> tuple[str, str | None, str | None]:
    """Take `owner/name[@revision][:split]` apart."""
    found = _HUB_ID.fullmatch(name)
    assert found is not None
    return found["name"], found["revision"], found["split"]


def open_binary(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """Open a file for reading, unpacked if it is gzip.

    Returns:
        the content after any byte order mark, and the file on the disk, whose position tells how
        much of it is read. Closing the first closes both.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        on_disk = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    stream: BinaryIO = on_disk
    if on_disk.peek(2)[:2] == b"\x1f\x8b":
        stream = _Unpacked(on_disk)
    return stream, on_disk


class _Unpacked(io.BufferedReader):
    """A gzip file read through a buffer; closes the file below it too."""

    def __init__(self, on_disk: BinaryIO) -> None:
        super().__init__(_Gzip(on_disk), 2**18)
        self._on_disk = on_disk

    def close(self) -> None:
        super().close()
        self._on_disk.close()


class _Gzip(io.RawIOBase):
    """The content of a gzip file; where it breaks off, first all that can be had."""

    def __init__(self, on_disk: BinaryIO) -> None:
        self._file = gzip.GzipFile(fileobj=on_disk)
        self._broken: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and self._broken is None:
            try:
                piece = self._file.read1(len(buffer) - filled)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._broken = error
                break
            if not piece:
                return filled
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        if self._broken is not None and not filled:
            raise self._broken
        return filled


def _kind(path: Path) -> FileKind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _look(path: Path) -> FileKind:
    """Tell the kind of a file whose name does not."""
    stream, _ = open_binary(path)
    with stream:
        start = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"{", b"[")):
        return "json"
    raise ConfigError(
        f"{path}: what kind of file is this?",
        hint=f"name it with one of the suffixes {', '.join(_SUFFIXES)}, each also with .gz",
    )


def _look_into(folder: Path) -> tuple[list[SourceFile], list[str]]:
    parts, others = [], []
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        if not path.is_file() or any(step.startswith(".") for step in within.parts):
            continue
        kind = _kind(path)
        named_otherwise = path.name in _METADATA or path.name.split(".")[0].lower() in _NO_DATA
        named_otherwise |= path.name.endswith(_BESIDE_CLEAN)
        if kind is None or path.suffix == ".md" or named_otherwise:
            others.append(str(path))
        else:
            parts.append(SourceFile(str(path), kind))
    return parts, others


def _near(path: Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f"did you mean {folder / near[0]}?"
    if not folder.is_dir():
        return f"the folder {folder} is not there either"
    return "give a file, a folder, or the hub id of a dataset (owner/name)"
