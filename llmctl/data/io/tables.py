"""Which rows are in a CSV or Parquet file?"""

import csv
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from llmctl.data.io.json_stream import MAX_ROW_BYTES
from llmctl.data.rows.extended_json import to_json
from llmctl.data.rows.json_text import ParseError, invalid_utf8
from llmctl.types import Progress, ProgressCallback

_BATCH = 512


def read_csv_rows(
    stream: BinaryIO, *, longest: int = MAX_ROW_BYTES
) -> Iterator[tuple[int, bytes, dict[str, object] | None, tuple[ParseError, ...]]]:
    """Yield the rows of a CSV file: first line, text, cells by column, and what is wrong.

    The first row names the columns. Comma, semicolon or tab, whichever that row has most of,
    separates the cells (RFC 4180 otherwise).
    """
    lines = _Lines(stream)
    header_text = stream.peek(2**16).split(b"\n", 1)[0]  # type: ignore[attr-defined]
    separator = max(",;\t", key=lambda sign: header_text.count(sign.encode()))
    csv.field_size_limit(longest)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        first = lines.number + 1
        try:
            cells = next(reader, None)
            fault = None
        except csv.Error as error:
            cells, fault = [], _explain(str(error), lines.number - first + 1)
        raw = lines.taken()
        if cells is None:
            return
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            fault = invalid_utf8(raw, error)
        if fault is None and not cells:
            continue  # a blank line
        if header is None:
            header = _names(cells)
            fault = fault or _check_header(header)
            if fault is not None:
                yield first, raw, None, (fault,)
                return
            continue
        if fault is None and len(cells) != len(header):
            fault = ParseError(
                "cells",
                f"{len(cells)} cells where the first row has {len(header)}",
                f'"quotes" around a text that holds {separator!r} or a line end',
                "",
            )
        value = None if fault else dict[str, object](zip(header, cells, strict=True))
        yield first, raw, value, (fault,) if fault else ()


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
    """Return a row of Arrow's as JSON text and as value."""
    whole = _without_null(value)
    return to_json(whole), whole


def _without_null(value: Any) -> Any:
    """Leave out what Arrow adds: a null for every field that only other rows have."""
    match value:
        case dict():
            return {k: _without_null(item) for k, item in value.items() if item is not None}
        case list():
            return [_without_null(item) for item in value]
    return value


class _Lines(Iterator[str]):
    """The lines of a stream as text, keeping the bytes of those not yet taken."""

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
    """Name the columns; the first as pandas does, which writes its row numbers without a name."""
    names = [name.strip() for name in cells]
    return [names[0] or "Unnamed: 0", *names[1:]] if any(names) else names


def _check_header(names: list[str]) -> ParseError | None:
    if "" in names:
        what = f"column {names.index('') + 1} has no name"
        return ParseError("header", what, "the first row names every column", "")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return ParseError("header", f"two columns are named {twice!r}", "each name once", "")
    return None


def _explain(said: str, lines: int) -> ParseError:
    """Turn a message of Python's CSV parser into one of ours."""
    if "unexpected end of data" in said or "field limit" in said:
        what = "a quote that opens in this row never closes"
        if lines > 1:
            what += f"; the {lines} lines to the end of the file are one row by it"
        return ParseError("half-row", what, 'a closing quote; "" for a quote within a text', "")
    if "expected after" in said:
        return ParseError("csv", "text after a closing quote", '"" for a quote within a text', "")
    return ParseError("csv", said, "RFC 4180", "")
