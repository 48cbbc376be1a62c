"""Readers of files of every kind: raw rows, parsed rows and examples, as streams."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.parse import parse_row
from llmctl.data.io.json_stream import MAX_ROW_BYTES, JsonStream, row_too_long
from llmctl.data.io.sources import DataSource, FileKind, SourceFile, list_source_files, open_text
from llmctl.data.rows.json_text import ParseError, invalid_utf8, json_type_name, parse_json
from llmctl.data.rows.row import RawRow
from llmctl.data.rows.row_errors import OnRowError, RowError
from llmctl.types import Example, Progress, ProgressCallback, SourceLocation, ignore_progress

__all__ = ["RawRow", "parse_rows", "read_examples", "read_rows"]

_PROGRESS_ROWS = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(source: DataSource, progress: ProgressCallback = ignore_progress) -> Iterator[RawRow]:
    """Yield every row of every file in order, including rows that cannot be read.

    Memory use is bounded by the longest row, not by the size of the files.

    Raises:
        ConfigError: a file does not exist, cannot be opened, or is of unknown kind.
        DataError: a folder has no data files, or a hub dataset cannot be loaded.
    """
    for file in list_source_files(source):
        any_row = False
        for row in _rows_of(file, progress):
            any_row = True
            yield row
        if not any_row:
            yield _file_error(file.name, 1, "empty", "the file has no rows", "at least one row")


def read_examples(
    source: DataSource,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    on_row_error: OnRowError,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[Example]:
    """Yield the example of every valid row, in order, and report the errors of the others.

    Args:
        columns: canonical names -> names in the files, where they differ: `{"output": "reply"}`.
        format: one of `FORMATS`, which every row must have; detected row by row if not given.
        on_row_error: called for each error of a row, in order.

    Raises:
        ConfigError, DataError: as `read_rows`; or `columns` or `format` do not exist.
    """
    for _, found in parse_rows(source, columns=columns, format=format, progress=progress):
        if isinstance(found, Example):
            yield found
        else:
            for error in found:
                on_row_error(error)


def parse_rows(
    source: DataSource,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[tuple[RawRow, Example | tuple[RowError, ...]]]:
    """Yield every row of every file with its example or with its errors.

    The arguments and exceptions are those of `read_examples`.
    """
    validate_format_options(columns, format)
    unseen = set((columns or {}).values())
    row = None
    for row in read_rows(source, progress):
        unseen -= row.value.keys()
        yield row, parse_row(row, columns=columns, format=format)
    if row is not None and unseen:
        origin = SourceLocation(row.origin.file, 1)
        what, fix = "no row has this column", "check the name after --column"
        errors = (RowError(origin, "unknown-column", what, fix, name) for name in sorted(unseen))
        yield RawRow(origin, b""), tuple(errors)


def _rows_of(file: SourceFile, progress: ProgressCallback) -> Iterator[RawRow]:
    match file.kind:
        case "hub":
            yield from _hub(file.name, progress)
        case "parquet":
            yield from _parquet(file.name, progress)
        case _:
            yield from _text_file(file.name, file.kind, file.name, progress)


def _table(name: str, rows: Iterable[tuple[bytes, Mapping[str, object]]]) -> Iterator[RawRow]:
    for number, (raw, value) in enumerate(rows, 1):
        yield RawRow(SourceLocation(name, number), raw, value)


def _hub(name: str, progress: ProgressCallback) -> Iterator[RawRow]:
    from llmctl.data.io.hub import load_hub_split

    split = load_hub_split(name, progress)
    if not split.json_files:
        yield from _table(name, split.rows(name, progress))
        return
    rows = (row for path in split.json_files for row in _text_file(path, "json", name, progress))
    for number, row in enumerate(rows, 1):
        # A file of the cache has a name that means nothing to the user.
        origin = SourceLocation(name, number)
        errors = tuple(replace(error, origin=origin) for error in row.errors)
        yield replace(row, origin=origin, errors=errors)


def _parquet(name: str, progress: ProgressCallback) -> Iterator[RawRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    from llmctl.data.io.tables import read_parquet_rows

    number = 0
    try:
        with ParquetFile(Path(name).expanduser()) as parquet:
            for row in _table(name, read_parquet_rows(name, parquet, progress)):
                number = row.origin.line
                yield row
    except (ArrowException, OSError) as error:
        what = f"not valid Parquet: {str(error).splitlines()[0].rstrip('.')}"
        yield _file_error(name, number + 1, "parquet", what, "is the file complete?")


def _text_file(
    file: str, kind: FileKind, shown: str, progress: ProgressCallback
) -> Iterator[RawRow]:
    path = Path(file).expanduser()
    stream, on_disk = open_text(path, shown)
    with stream:
        total = path.stat().st_size
        line = 0
        try:
            for number, row in enumerate(read_text_rows(file, kind, stream)):
                line = row.origin.line
                if number % _PROGRESS_ROWS == 0:
                    progress(Progress(f"reading {shown}", on_disk.tell(), total, "B"))
                yield row
        except (EOFError, gzip.BadGzipFile, zlib.error):
            yield _file_error(
                file,
                line + 1,
                "gzip",
                "the gzip data end or are corrupt here",
                "is the file complete? the rows before are read",
            )


def read_text_rows(file: str, kind: FileKind, stream: BinaryIO) -> Iterator[RawRow]:
    """Yield the rows of a stream of `open_utf8`; `file` is the name for their origins."""
    start = _peek(stream)
    if b"\0" in start[:64]:
        what = "the text has null bytes: it may be UTF-16 or UTF-32, or no text"
        yield _file_error(file, 1, "utf8", what, "save the file as UTF-8")
        return
    if kind == "csv":
        from llmctl.data.io.tables import read_csv_rows

        for line, raw, value, errors in read_csv_rows(stream):
            yield _row(file, line, raw, value, errors)
    elif kind == "text":
        yield from _text_lines(file, stream)
    elif _is_lines(start):
        yield from _json_lines(file, stream)
    else:
        for element in JsonStream(stream).elements():
            yield _row(file, element.line, element.raw, element.value, element.errors)


def _peek(stream: BinaryIO) -> bytes:
    return stream.peek(2**16)  # type: ignore[attr-defined, no-any-return]


def _is_lines(start: bytes) -> bool:
    """Whether JSON is one object per line, judged by its first line that is not empty."""
    first = start.lstrip().split(b"\n", 1)[0].rstrip()
    if first.startswith(b"["):
        return False
    # The first line of an indented object ends with an opener or a comma.
    return not first.endswith((b"{", b"[", b",")) or first.endswith(b"},")


def _json_lines(file: str, stream: BinaryIO) -> Iterator[RawRow]:
    for number, line in _lines(stream):
        if line is None:
            yield _row(file, number, b"", None, (row_too_long(),))
        elif line.strip():
            # Concatenated files have byte order marks in the middle.
            yield _row(file, number, line, *parse_json(line.removeprefix(_BYTE_ORDER_MARK)))


def _text_lines(file: str, stream: BinaryIO) -> Iterator[RawRow]:
    for number, line in _lines(stream):
        if line is None:
            yield _row(file, number, b"", None, (row_too_long(),))
        elif line.strip():
            try:
                yield RawRow(SourceLocation(file, number), line, {"text": line.decode()})
            except UnicodeDecodeError as error:
                yield _row(file, number, line, None, (invalid_utf8(line, error),))


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number from 1, without its end; `None` for a line over the limit."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) <= MAX_ROW_BYTES or line.endswith(b"\n"):
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_ROW_BYTES)
        yield number, None


def _row(file: str, line: int, raw: bytes, value: object, errors: tuple[ParseError, ...]) -> RawRow:
    if not errors and not isinstance(value, dict):
        errors = (ParseError("no-object", f"the row is {json_type_name(value)}", "an object", ""),)
    if not errors:
        assert isinstance(value, dict)
        return RawRow(SourceLocation(file, line), raw, value)
    row_errors = tuple(
        RowError(
            SourceLocation(file, line + error.line), error.kind, error.what, error.fix, error.field
        )
        for error in errors
    )
    return RawRow(SourceLocation(file, line), raw, {}, row_errors)


def _file_error(file: str, line: int, kind: str, what: str, fix: str) -> RawRow:
    return _row(file, line, b"", None, (ParseError(kind, what, fix, ""),))
