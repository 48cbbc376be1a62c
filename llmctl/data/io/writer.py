"""Atomic writer of rows to JSON, JSON lines, CSV or Parquet files."""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

from llmctl.atomic_files import atomic_path
from llmctl.data.rows.extended_json import from_json, to_json, to_standard_json, value_as_text
from llmctl.errors import ConfigError

_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (*_LINES, ".json", ".csv", ".tsv", ".parquet")
_BATCH = 1024


class RowWriter:
    """Writes rows to a file of the kind given by its suffix; `.gz` compresses it.

    Use it as a context manager. The file appears when the block ends without an error; otherwise
    nothing is left behind.

    Raises:
        ConfigError: the suffix is unknown, the folder does not exist, or the file exists and
            `overwrite` is false.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._compressed = self.path.suffix.lower() == ".gz"
        uncompressed = self.path.with_suffix("") if self._compressed else self.path
        self._suffix = uncompressed.suffix.lower()
        if self._suffix not in _SUFFIXES or (self._compressed and self._suffix == ".parquet"):
            raise ConfigError(
                f"{path}: rows cannot be written to files of this kind",
                hint=f"use one of {', '.join(_SUFFIXES)}, all but the last also with .gz",
            )
        if not self.path.parent.is_dir():
            raise ConfigError(
                f"the folder {self.path.parent} does not exist", hint="create it first"
            )
        if self.path.is_dir() or (self.path.exists() and not overwrite):
            raise ConfigError(
                f"{path} already exists", hint="add --overwrite, or choose another name"
            )
        self.rows = 0
        self._files = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self.path))
            stack.push(self._close)
            if self._suffix in (".csv", ".tsv", ".parquet"):
                # The columns are known only after the last row.
                self._stream: IO[bytes] = self._files.enter_context(
                    tempfile.TemporaryFile(dir=self.path.parent)
                )
            else:
                self._stream = self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._files.close()

    def write(self, value: Mapping[str, object]) -> None:
        """Write one row."""
        self.write_raw(to_json(value))

    def write_raw(self, raw: bytes) -> None:
        """Write one row that `extended_json.to_json` has encoded."""
        if self._suffix != ".parquet":
            raw = to_standard_json(raw)
        if self._suffix == ".json":
            self._stream.write(b",\n" if self.rows else b"[\n")
            self._stream.write(raw)
        else:
            self._stream.write(raw + b"\n")
        self.rows += 1

    def _open(self) -> IO[bytes]:
        stream: IO[bytes] = self._files.enter_context(self._temporary.open("wb"))
        if self._compressed:
            # Without name and time, equal rows make equal files.
            compressed = gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0)
            self._files.callback(compressed.close)
            return compressed  # type: ignore[return-value]
        return stream

    def _finish(self) -> None:
        if self._suffix == ".json":
            self._stream.write(b"\n]\n" if self.rows else b"[]\n")
        elif self._suffix not in _LINES:
            if self._suffix == ".parquet":
                _write_parquet(self._spilled, self._temporary)
            else:
                _write_csv(self._spilled, self._open(), "," if self._suffix == ".csv" else "\t")

    def _spilled(self) -> Iterator[dict[str, Any]]:
        self._stream.seek(0)
        for line in self._stream:
            yield from_json(line)


def _write_csv(
    rows: Callable[[], Iterator[dict[str, Any]]], stream: IO[bytes], separator: str
) -> None:
    columns = list(dict.fromkeys(name for row in rows() for name in row))
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(columns)
    for row in rows():
        writer.writerow([_cell(row.get(name)) for name in columns])
    text.detach()


def _cell(value: object) -> str:
    """Return a value as text; lists, objects and numbers as JSON, which the reader decodes."""
    if value is None:
        return ""
    if isinstance(value, dict | list | int | float):
        return json.dumps(value, ensure_ascii=False, default=value_as_text)
    return value_as_text(value)


def _write_parquet(rows: Callable[[], Iterator[dict[str, Any]]], path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    types = _column_types(rows)
    schema = pa.schema([(name, found or pa.string()) for name, found in types.items()])
    with ParquetWriter(path, schema) as writer:
        for batch in _batches(rows()):
            values = [
                {name: v if types[name] or v is None else _cell(v) for name, v in row.items()}
                for row in batch
            ]
            writer.write_table(pa.Table.from_pylist(values, schema))


def _column_types(rows: Callable[[], Iterator[dict[str, Any]]]) -> dict[str, Any]:
    """Return the Arrow type of each column; `None` if its values have no common type.

    Tool definitions never have one, since their parameter schemas differ.
    """
    import pyarrow as pa

    types: dict[str, Any] = {}
    for batch in _batches(rows()):
        for name in dict.fromkeys(name for row in batch for name in row):
            known = types.setdefault(name, None if name == "tools" else pa.null())
            if known is None:
                continue
            try:
                found = pa.array([row.get(name) for row in batch]).type
                both = [pa.schema([(name, either)]) for either in (known, found)]
                types[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except pa.ArrowException:
                types[name] = None
    # Parquet cannot store an object without keys.
    return {name: None if "struct<>" in str(found) else found for name, found in types.items()}


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch
