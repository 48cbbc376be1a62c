"""Rows of CSV and Parquet files."""

import csv
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from llmctl.data.io.json_stream import MAX_ROW_BYTES
from llmctl.data.rows.extended_json import to_json
from llmctl.data.rows.json_text import ParseError, invalid_utf8
from llmctl.types import Progress, ProgressCallback

_BATCH = 512


def read_csv_rows(
    stream: BinaryIO,
) -> Iterator[tuple[int, bytes, dict[str, object] | None, tuple[ParseError, ...]]]:
    """Yield the rows of a CSV file: first line, bytes, cells by column, and errors.

    The first row names the columns. The separator is comma, semicolon or tab, whichever that row
    has most of; otherwise RFC 4180 applies.
    """
    lines = _Lines(stream)
    header_text = stream.peek(2**16).split(b"\n", 1)[0]  # type: ignore[attr-defined]
    separator = max(",;\t", key=lambda sign: header_text.count(sign.encode()))
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        first = lines.number + 1
        try:
            cells = next(reader, None)
            error = None
        except csv.Error as csv_error:
            cells, error = [], _csv_error(str(csv_error), lines.number - first + 1)
        raw = lines.taken()
        if cells is None:
            return
        try:
            raw.decode()
        except UnicodeDecodeError as decode_error:
            error = invalid_utf8(raw, decode_error)
        if error is None and not cells:
            continue  # a blank line
        if header is None:
            header = _names(cells)
            error = error or _header_error(header)
            if error is not None:
                yield first, raw, None, (error,)
                return
            continue
        if error is None and len(cells) != len(header):
            error = ParseError(
                "cells",
                f"{len(cells)} cells where the first row has {len(header)}",
                f"quotes around a cell that contains {separator!r} or a line end",
                "",
            )
        value = None if error else dict[str, object](zip(header, cells, strict=True))
        yield first, raw, value, (error,) if error else ()


def read_parquet_rows(
    name: str, file: Any, progress: ProgressCallback
) -> Iterator[tuple[bytes, Mapping[str, object]]]:
    """Yield the rows of an open `pyarrow.parquet.ParquetFile` as JSON text and as value."""
    done, total = 0, file.metadata.num_rows
    for batch in file.iter_batches(batch_size=_BATCH):
        for value in batch.to_pylist():
            yield encode_arrow_row(value)
        done += len(batch)
        progress(Progress(f"reading {name}", done, total))


def encode_arrow_row(value: dict[str, Any]) -> tuple[bytes, Mapping[str, object]]:
    """Return a row of an Arrow table as JSON text and as value."""
    row = _without_null(value)
    return to_json(row), row


def _without_null(value: Any) -> Any:
    """Remove the nulls that Arrow adds for fields that only other rows have."""
    match value:
        case dict():
            return {k: _without_null(item) for k, item in value.items() if item is not None}
        case list():
            return [_without_null(item) for item in value]
    return value


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


def _names(cells: list[str]) -> list[str]:
    """Return the column names; an unnamed first column is the index that pandas writes."""
    names = [name.strip() for name in cells]
    return [names[0] or "Unnamed: 0", *names[1:]] if any(names) else names


def _header_error(names: list[str]) -> ParseError | None:
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
