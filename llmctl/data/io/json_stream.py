"""Streaming reader of JSON arrays and concatenated JSON values, one element at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from llmctl.data.rows.json_text import ParseError, parse_json

MAX_ROW_BYTES = 64 * 2**20
"""A longer row is taken for a missing bracket or quote."""
_CHUNK = 2**20
_MAX_INDENT = 256
_WHITE_SPACE = re.compile(rb"[ \t\r\n]*+")
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"?|[\[\]{}]')
"""A bracket or a string. A string ends at its line's end at the latest, so that a missing quote
invalidates one line and not the rest of the file."""
_SCALAR = re.compile(rb'[^,\]\[{}"\s]*+')
_OPENER = {b"}": b"{", b"]": b"["}


@dataclass(frozen=True, slots=True)
class JsonElement:
    """One element of the array: its bytes in the file and its value."""

    raw: bytes
    line: int
    value: object
    errors: tuple[ParseError, ...] = ()


def row_too_long() -> ParseError:
    """Return the error for a row over `MAX_ROW_BYTES`."""
    what = f"the row does not end within {MAX_ROW_BYTES // 2**20} MiB"
    return ParseError("half-row", what, "is a quote, a bracket or a line end missing?", "")


class JsonStream:
    """The elements of a JSON array, or of concatenated JSON values.

    Keeps one element and one chunk of 1 MiB in memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self._line = 1
        self._in_array = False
        self._ended = False
        self._dropped = 0

    def elements(self) -> Iterator[JsonElement]:
        """Yield every element in order; an error of the array itself is an element of its own."""
        self._skip_blank()
        self._in_array = self._peek() == b"["
        if self._in_array:
            self._at += 1
        comma, first = False, True
        while True:
            self._skip_blank()
            sign = self._peek()
            if self._in_array and sign == b"]":
                if comma:
                    yield self._array_error("a comma before the closing bracket", "remove it")
                self._at += 1
                break
            if not sign:
                if self._in_array:
                    yield self._array_error(
                        "the array is not closed", "is the file truncated?", "half-row"
                    )
                return
            if sign == b",":
                if comma or first or not self._in_array:
                    yield self._array_error("a comma without a row before it", "remove it")
                comma = True
                self._at += 1
                continue
            if self._in_array and not (comma or first):
                yield self._array_error("no comma between two rows", "add a comma")
            yield self._element()
            comma, first = False, False
        self._skip_blank()
        if self._peek():
            yield self._array_error("text after the array's end", "one array and nothing else")

    def _array_error(self, what: str, fix: str, kind: str = "json") -> JsonElement:
        return JsonElement(b"", self._line, None, (ParseError(kind, what, fix, ""),))

    def _element(self) -> JsonElement:
        start = self._line
        end = self._end()  # may read more, which moves the buffer
        raw = self._buffer[self._at : end]
        value: object = None
        faults: tuple[ParseError, ...]
        if len(raw) > MAX_ROW_BYTES:
            faults = (row_too_long(),)
        elif raw:
            value, faults = parse_json(raw.rstrip())
        else:
            faults = (ParseError("json", "not a JSON value", "an object", ""),)
        cut = self._next_row(raw) if faults and value is None else None
        if cut is not None:
            # A bracket is missing, so that the element contains what looks like the next row.
            raw = raw[:cut].rstrip().removesuffix(b",").rstrip()
            value, faults = parse_json(raw)
        raw = raw or self._buffer[self._at : self._at + 1]
        self._line += raw.count(b"\n")
        self._at += len(raw)
        return JsonElement(raw.rstrip(), start, value, faults)

    def _end(self) -> int:
        """Return where in the buffer the element that begins at `_at` ends."""
        if self._peek() not in (b"{", b"[", b'"'):
            while True:
                found = _SCALAR.match(self._buffer, self._at)
                assert found is not None
                if found.end() < len(self._buffer) or not self._more():
                    return found.end()
        open_brackets: list[bytes] = []
        position = self._at
        while True:
            mark = _TOKEN.search(self._buffer, position)
            if mark is None or (
                # The string may continue in the next chunk.
                mark[0][:1] == b'"' and mark.end() >= len(self._buffer) - 1 and not self._ended
            ):
                position = len(self._buffer) if mark is None else mark.start()
                if position - self._at > MAX_ROW_BYTES:
                    return len(self._buffer)
                if self._more():
                    position -= self._dropped
                elif mark is None:
                    return len(self._buffer)
                continue
            position, sign = mark.end(), mark[0]
            if sign in (b"{", b"["):
                open_brackets.append(sign)
            elif sign in _OPENER:
                if _OPENER[sign] in open_brackets:
                    while open_brackets.pop() != _OPENER[sign]:
                        pass
                elif sign == b"]" and not self._buffer[position:].strip():
                    return mark.start()  # the end of the array
            if not open_brackets:
                return position

    def _next_row(self, raw: bytes) -> int | None:
        """Return where in `raw` a line has an opening brace at the row's own indentation."""
        line_start = self._buffer.rfind(b"\n", 0, self._at) + 1
        indent = self._buffer[line_start : self._at]
        if not raw.startswith(b"{") or indent.strip(b" \t"):
            return None
        at = raw.find(b"\n" + indent + b"{", 1)
        return None if at < 0 else at + 1 + len(indent)

    def _peek(self) -> bytes:
        while self._at >= len(self._buffer) and self._more():
            pass
        return self._buffer[self._at : self._at + 1]

    def _skip_blank(self) -> None:
        while True:
            found = _WHITE_SPACE.match(self._buffer, self._at)
            assert found is not None
            self._line += self._buffer.count(b"\n", self._at, found.end())
            self._at = found.end()
            if self._at < len(self._buffer) or not self._more():
                return

    def _more(self) -> bool:
        """Read a chunk; drop what is before the current element except its indentation."""
        # One read at a time: an error must not discard data read before it.
        chunk = self._stream.read1(max(_CHUNK, len(self._buffer)))  # type: ignore[attr-defined]
        if not chunk:
            self._ended = True
            return False
        self._dropped = max(0, self._at - _MAX_INDENT)
        self._buffer = self._buffer[self._dropped :] + chunk
        self._at -= self._dropped
        return True
