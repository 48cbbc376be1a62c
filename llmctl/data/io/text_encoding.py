"""Text files in UTF-8, UTF-16, UTF-32 and GB18030, read as UTF-8."""

import codecs
import gzip
import io
import logging
import zlib
from collections import Counter
from functools import lru_cache
from typing import Any, BinaryIO

_log = logging.getLogger(__name__)
_INVALID = "llmctl.invalid"
"""Name of the error handler of decoders."""
_CHUNK = 2**18
_WINDOW = 2**20
"""Bytes from the first one that is not ASCII on, from which the encoding is detected."""
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32-LE"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32-BE"),
    (codecs.BOM_UTF16_LE, "UTF-16-LE"),
    (codecs.BOM_UTF16_BE, "UTF-16-BE"),
)
_READ_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


def open_utf8(source: BinaryIO, name: str) -> io.BufferedReader:
    """Return the text of a stream as UTF-8 without a byte order mark; closing it closes `source`.

    The encoding is that of the byte order mark; else UTF-8; else UTF-16 where the text begins with
    an ASCII character, or GB18030 where the text is certain to be Chinese. It is logged unless it
    is UTF-8. Bytes that are invalid in the encoding are invalid in the result.

    Args:
        name: of the file, for the log.
    """
    return io.BufferedReader(_Utf8Stream(source, name), _CHUNK)


class _Utf8Stream(io.RawIOBase):
    """The text of a stream as UTF-8."""

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source = source
        self._name = name
        self._started = False
        self._detected = False
        self._decoder: codecs.IncrementalDecoder | None = None
        """`None` for text that is passed on as it is."""
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            data = self._read(_CHUNK)
            if not data:
                self._rest = self._to_utf8(b"", final=True)
                self._decoder = None
                break
            self._rest = self._to_utf8(self._detect(data))
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)

    def close(self) -> None:
        super().close()
        self._source.close()

    def _read(self, size: int) -> bytes:
        # One read at a time: an error must not discard data read before it.
        return self._source.read1(size)  # type: ignore[attr-defined, no-any-return]

    def _filled(self, data: bytes, size: int) -> bytes:
        """Return `data` and what follows it, up to `size` bytes."""
        while len(data) < size:
            try:
                more = self._read(size - len(data))
            except _READ_ERRORS:
                break  # the next read raises it again
            if not more:
                break
            data += more
        return data

    def _detect(self, data: bytes) -> bytes:
        """Detect the encoding as far as `data` shows it; return `data` without a mark."""
        if self._detected:
            return data
        if not self._started:
            self._started = True
            data = self._filled(data, 4096)
            for mark, encoding in _BYTE_ORDER_MARKS:
                if data.startswith(mark):
                    self._take(encoding)
                    return data.removeprefix(mark)
            for encoding, nulls, texts in (("UTF-16-LE", 1, 0), ("UTF-16-BE", 0, 1)):
                if data[nulls::2][:1] == b"\0" and data[texts::2][:1].isascii():
                    data = self._filled(data, _WINDOW)
                    text = codecs.getincrementaldecoder(encoding)(_INVALID).decode(data)
                    if "\0" not in text and text.count("\udcff") < 0.01 * len(text):
                        self._take(encoding)
                        return data
        if not data.isascii():
            data = self._filled(data, len(data) + _WINDOW)
            is_utf8 = _decoded(data, "UTF-8") is not None
            self._take("GB18030" if not is_utf8 and _is_chinese_gb18030(data) else "UTF-8")
        return data

    def _take(self, encoding: str) -> None:
        self._detected = True
        if encoding != "UTF-8":
            self._decoder = codecs.getincrementaldecoder(encoding)(_INVALID)
            _log_encoding(self._name, encoding)

    def _to_utf8(self, data: bytes, *, final: bool = False) -> bytes:
        if self._decoder is None:
            return data
        return self._decoder.decode(data, final).encode("utf-8", "surrogateescape")


def _invalid(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end  # encoded as the byte 0xFF, which UTF-8 never has


codecs.register_error(_INVALID, _invalid)


@lru_cache(maxsize=256)  # files are read more than once
def _log_encoding(name: str, encoding: str) -> None:
    _log.warning("%s is not UTF-8; it is read as %s", name, encoding)


def _decoded(data: bytes, encoding: str) -> str | None:
    """Return the text of `data`, which may end inside a character; `None` if it is invalid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return None


def _is_chinese_gb18030(data: bytes) -> bool:
    """Whether bytes are certain to be Chinese text in GB18030 or its subsets GBK and GB2312.

    Text in other legacy encodings is often valid GB18030 too, but then reads as rare characters:
    of Chinese text nine tenths are the 3,755 most frequent characters, at 0xB0A1-0xD7F9 in the
    order of their pronunciation, or punctuation. Korean text in EUC-KR has its syllables at
    0xB0A1-0xC8FE, below about half of the Chinese characters.
    """
    text = codecs.getincrementaldecoder("GB18030")(_INVALID).decode(data)
    counts = Counter(char for char in text if char > "\x7f")
    frequent = after_korean = punctuation = 0
    for char, count in counts.items():
        first, *rest = char.encode("gb18030", "replace")
        if len(rest) != 1 or rest[0] < 0xA1:
            continue
        if 0xB0 <= first <= 0xD7:
            frequent += count
            after_korean += count if first > 0xC8 else 0
        elif 0xA1 <= first <= 0xA3:
            punctuation += count
    return (
        frequent > 0
        and (frequent + punctuation) >= 0.9 * counts.total()
        and after_korean >= 0.1 * frequent
    )
