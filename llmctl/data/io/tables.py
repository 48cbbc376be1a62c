"""Rows of CSV and Parquet files."""

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from llmctl.data.formats.columns import FORMATS, format_columns
from llmctl.data.io.json_stream import MAX_ROW_BYTES
from llmctl.data.rows.extended_json import to_json
from llmctl.data.rows.json_text import ParseError, invalid_utf8
from llmctl.types import Progress, ProgressCallback

_BATCH = 512
_TEXT_FIELDS = {"content", "value"}.union(*map(format_columns, FORMATS)) - {
    *("messages", "conversations", "conversation", "tools", "functions", "history")
}
"""Fields whose objects are taken for answers that are JSON."""


class CsvRecord(NamedTuple):
    """One record of a CSV file."""

    line: int
    """The first line, from 1."""
    raw: bytes
    cells: list[str]
    error: ParseError | None


def detect_separator(stream: BinaryIO) -> str:
    """Return comma, semicolon or tab, whichever the first line of a buffered stream has most of."""
    first_line = stream.peek(2**16).split(b"\n", 1)[0]  # type: ignore[attr-defined]
    return max(",;\t", key=lambda sign: first_line.count(sign.encode()))


def read_csv_records(stream: BinaryIO, separator: str) -> Iterator[CsvRecord]:
    """Yield the records of a CSV file in UTF-8 as in RFC 4180; blank lines are skipped."""
    lines = _Lines(stream)
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        first = lines.number + 1
        error = None
        try:
            cells = next(reader, None)
        except csv.Error as csv_error:
            cells, error = [], _csv_error(str(csv_error), lines.number - first + 1)
        raw = lines.taken()
        if cells is None:
            return
        try:
            raw.decode()
        except UnicodeDecodeError as decode_error:
            error = invalid_utf8(raw, decode_error)
        if cells or error is not None:
            yield CsvRecord(first, raw, cells, error)


def read_csv_rows(
    stream: BinaryIO,
) -> Iterator[tuple[int, bytes, dict[str, object] | None, tuple[ParseError, ...]]]:
    """Yield the rows of a CSV file: first line, bytes, cells by column, and errors.

    The first record names the columns.
    """
    separator = detect_separator(stream)
    records = read_csv_records(stream, separator)
    for first in records:
        header = column_names(first.cells)
        error = first.error or header_error(header)
        if error is not None:
            yield first.line, first.raw, None, (error,)
            return
        break
    for line, raw, cells, error in records:
        if error is None and len(cells) != len(header):
            error = ParseError(
                "cells",
                f"{len(cells)} cells where the first row has {len(header)}",
                f"quotes around a cell that contains {separator!r} or a line end",
                "",
            )
        value = None if error else dict[str, object](zip(header, cells, strict=True))
        yield line, raw, value, (error,) if error else ()


def read_parquet_rows(
    name: str, file: Any, progress: ProgressCallback
) -> Iterator[tuple[bytes, Mapping[str, object]]]:
    """Yield the rows of an open `pyarrow.parquet.ParquetFile` as JSON text and as value."""
    done, total = 0, file.metadata.num_rows
    for batch in file.iter_batches(batch_size=_BATCH):
        yield from arrow_rows(batch)
        done += len(batch)
        progress(Progress(f"reading {name}", done, total))


def arrow_rows(table: Any) -> Iterator[tuple[bytes, Mapping[str, object]]]:
    """Yield the rows of a `pyarrow.Table` or `RecordBatch` as JSON text and as value.

    Nulls are dropped: Arrow adds them for fields that only other rows have. Columns of type JSON
    are decoded as `_decode_json` describes.
    """
    schema = table.schema
    for value in table.to_pylist():
        row = {
            name: _plain(item, schema.field(name).type, name)
            for name, item in value.items()
            if item is not None
        }
        yield to_json(row), row


def _plain(value: Any, type: Any, name: str) -> Any:
    """Decode the JSON in a value of Arrow type `type`, and drop the nulls of its fields."""
    if isinstance(value, str) and getattr(type, "extension_name", "") == "arrow.json":
        return _decode_json(value, name)
    type = getattr(type, "storage_type", type)
    match value:
        case dict():
            return {
                key: _plain(item, type.field(key).type, key)
                for key, item in value.items()
                if item is not None
            }
        case list() if hasattr(type, "value_type"):
            return [_plain(item, type.value_type, "") for item in value]
    return value


def _decode_json(text: str, name: str) -> object:
    """Return the value of a column of Arrow type `arrow.json`.

    `datasets` 5 gives this type to a field that holds text in some rows and objects in others. It
    stores text that happens to be JSON as it is ("42"), all other text with quotes. What was text
    must remain text: numbers, true, null and lists of them are returned as they are written, and so
    are objects in fields that hold text.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    match value:
        case str():
            return value
        case [dict(), *rest] if all(isinstance(item, dict) for item in rest):
            return value
        case dict() if name not in _TEXT_FIELDS:
            return value
    return text


class _Lines(Iterator[str]):
    """The lines of a stream as text; keeps the bytes of the lines read since the last `taken`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._kept: list[bytes] = []
        self.number = 0

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        self._kept.append(line)
        self.number += 1
        return line.decode(errors="replace")

    def taken(self) -> bytes:
        """Return the bytes read since the last call."""
        raw = b"".join(self._kept)
        self._kept.clear()
        return raw.rstrip(b"\r\n")


def column_names(cells: list[str]) -> list[str]:
    """Return the column names; an unnamed first column is the index that pandas writes."""
    names = [name.strip() for name in cells]
    return [names[0] or "Unnamed: 0", *names[1:]] if any(names) else names


def header_error(names: list[str]) -> ParseError | None:
    """Return the error of columns without a name or with one name; `None` if there is none."""
    if "" in names:
        what = f"column {names.index('') + 1} has no name"
        return ParseError("header", what, "the first row names every column", "")
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        return ParseError("header", f"two columns are named {duplicate!r}", "each name once", "")
    return None


def _csv_error(message: str, lines: int) -> ParseError:
    """Return the error for a message of Python's CSV parser."""
    if "unexpected end of data" in message or "field limit" in message:
        what = "a quote in this row is never closed"
        if lines > 1:
            what += f"; the {lines} lines to the end of the file become one row"
        return ParseError("half-row", what, 'a closing quote; "" for a quote inside a cell', "")
    if "expected after" in message:
        return ParseError("csv", "text after a closing quote", '"" for a quote inside a cell', "")
    return ParseError("csv", message, "RFC 4180", "")
