"""What rows are in these files? Reads them one by one, in order, and says which cannot be read."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.parse import parse_row
from llmctl.data.io.json_stream import MAX_ROW_BYTES, JsonStream, row_too_long
from llmctl.data.io.sources import DataSource, SourceFile, list_source_files, open_binary
from llmctl.data.rows.json_text import ParseError, invalid_utf8, json_type_name, parse_json
from llmctl.data.rows.row import RawRow
from llmctl.data.rows.row_errors import OnRowError, RowError
from llmctl.types import Example, Progress, ProgressCallback, SourceLocation, ignore_progress

__all__ = ["RawRow", "parse_rows", "read_examples", "read_rows"]

_REPORT_ROWS = 256
_MARK = b"\xef\xbb\xbf"


def read_rows(source: DataSource, progress: ProgressCallback = ignore_progress) -> Iterator[RawRow]:
    """Yield every row of every file in order, those that cannot be read too.

    Memory is bounded by the longest row, whatever the size of the files.

    Raises:
        ConfigError: a file is not there, cannot be opened, or its kind is not known.
        DataError: a folder or file holds nothing at all, or a hub's dataset cannot be had.
    """
    for part in list_source_files(source):
        any_row = False
        for row in _rows_of(part, progress):
            any_row = True
            yield row
        if not any_row:
            yield _broken(part.name, 1, "empty", "the file has no rows", "at least one")


def read_examples(
    source: DataSource,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    on_row_error: OnRowError,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[Example]:
    """Yield every row that is a whole example, in order; tell of every one that is not.

    Args:
        columns: names of ours -> names in the files, where they differ: `{"output": "reply"}`.
        format: one of `FORMATS` that every row has; recognised row by row where not given.
        on_problem: called for each thing that is wrong with a row, in order.

    Raises:
        ConfigError, DataError: as `read_rows`; or `columns` or `format` name what does not exist.
    """
    for _, found in parse_rows(source, columns=columns, format=format, progress=progress):
        if isinstance(found, Example):
            yield found
        else:
            for problem in found:
                on_row_error(problem)


def parse_rows(
    source: DataSource,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[tuple[RawRow, Example | tuple[RowError, ...]]]:
    """Yield every row of every file with what it says, or with everything that is wrong with it.

    Arguments and errors are those of `read_examples`.
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
        problems = (RowError(origin, "unknown-column", what, fix, name) for name in sorted(unseen))
        yield RawRow(origin, b""), tuple(problems)


def _rows_of(part: SourceFile, progress: ProgressCallback) -> Iterator[RawRow]:
    match part.kind:
        case "hub":
            from llmctl.data.io.hub import read_hub_rows

            yield from _table(part.name, read_hub_rows(part.name, progress))
        case "parquet":
            yield from _parquet(part.name, progress)
        case _:
            yield from _text_file(part, progress)


def _table(name: str, rows: Iterable[tuple[bytes, Mapping[str, object]]]) -> Iterator[RawRow]:
    for number, (raw, value) in enumerate(rows, 1):
        yield RawRow(SourceLocation(name, number), raw, value)


def _parquet(name: str, progress: ProgressCallback) -> Iterator[RawRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    from llmctl.data.io.tables import read_parquet_rows

    number = 0
    try:
        with ParquetFile(Path(name).expanduser()) as file:
            for row in _table(name, read_parquet_rows(name, file, progress)):
                number = row.origin.line
                yield row
    except (ArrowException, OSError) as error:
        what = f"no Parquet data: {str(error).splitlines()[0].rstrip('.')}"
        yield _broken(name, number + 1, "parquet", what, "is the file whole?")


def _text_file(part: SourceFile, progress: ProgressCallback) -> Iterator[RawRow]:
    path = Path(part.name).expanduser()
    stream, on_disk = open_binary(path)
    with stream:
        total = path.stat().st_size
        line = 0
        try:
            for number, row in enumerate(_text_rows(part, stream)):
                line = row.origin.line
                if number % _REPORT_ROWS == 0:
                    progress(Progress(f"reading {part.name}", on_disk.tell(), total, "B"))
                yield row
        except (EOFError, gzip.BadGzipFile, zlib.error):
            yield _broken(
                part.name,
                line + 1,
                "gzip",
                "the gzip data break off here",
                "is the file whole? what was read before is not lost",
            )


def _text_rows(part: SourceFile, stream: BinaryIO) -> Iterator[RawRow]:
    start = _peek(stream)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:64]:
        what = "the text is UTF-16 or UTF-32" if b"\0" in start else "the text is UTF-16"
        yield _broken(part.name, 1, "utf8", what, "save the file as UTF-8")
        return
    if start.startswith(_MARK):
        stream.read(len(_MARK))
        start = start[len(_MARK) :]
    if part.kind == "csv":
        from llmctl.data.io.tables import read_csv_rows

        for line, raw, value, faults in read_csv_rows(stream):
            yield _row(part.name, line, raw, value, faults)
    elif part.kind == "text":
        yield from _text_lines(part.name, stream)
    elif _is_lines(start):
        yield from _json_lines(part.name, stream)
    else:
        for found in JsonStream(stream).elements():
            yield _row(part.name, found.line, found.raw, found.value, found.errors)


def _peek(stream: BinaryIO) -> bytes:
    return stream.peek(2**16)  # type: ignore[attr-defined, no-any-return]


def _is_lines(start: bytes) -> bool:
    """Whether JSON is one object per line, judged by its first line that is not blank."""
    first = start.lstrip().split(b"\n", 1)[0].rstrip()
    if first.startswith(b"["):
        return False
    # An indented object breaks off at a place where nobody cuts a line.
    return not first.endswith((b"{", b"[", b",")) or first.endswith(b"},")


def _json_lines(file: str, stream: BinaryIO) -> Iterator[RawRow]:
    for number, line in _lines(stream):
        if line is None:
            yield _row(file, number, b"", None, (row_too_long(),))
        elif line.strip():
            # Files that were joined have a mark in the middle.
            yield _row(file, number, line, *parse_json(line.removeprefix(_MARK)))


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
    """Number the lines from 1, without their ends; `None` is one that is too long to hold."""
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
    problems = tuple(
        RowError(
            SourceLocation(file, line + fault.line), fault.kind, fault.what, fault.fix, fault.field
        )
        for fault in errors
    )
    return RawRow(SourceLocation(file, line), raw, {}, problems)


def _broken(file: str, line: int, kind: str, what: str, fix: str) -> RawRow:
    return _row(file, line, b"", None, (ParseError(kind, what, fix, ""),))
