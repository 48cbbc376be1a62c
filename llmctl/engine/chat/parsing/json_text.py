"""Reading of JSON (RFC 8259) that arrives in pieces."""

import json
from collections.abc import Callable

from llmctl.engine.chat.parsing.text_source import Steps, TextSource, UnexpectedTextError

_OUTSIDE = frozenset('{}[]",:+-.0123456789 \t\r\nabcdefghijklmnopqrstuvwxyzEINTF')
"""Characters outside of strings, with those of Python's `True`, `NaN` and `Infinity`."""
_CONTROL = {chr(code): json.dumps(chr(code))[1:-1] for code in range(32)}


class ValueScanner:
    """Finds the end of a JSON value in a stream of text."""

    def __init__(self) -> None:
        self.ended = False
        self.broken = False
        """Whether it ended because the text is not JSON."""
        self._depth = 0
        self._in_string = self._escaped = False
        self._control: list[int] = []
        """Places of control characters within strings of the last piece."""

    def escaped(self, text: str) -> str:
        """Return the scanned text with the control characters in its strings escaped."""
        for at in reversed(self._control):
            text = text[:at] + _CONTROL[text[at]] + text[at + 1 :]
        return text

    def scan(self, text: str) -> int:
        """Return how many characters of the next piece of text belong to the value."""
        self._control = []
        for at, char in enumerate(text):
            if self._in_string:
                if char < " ":
                    self._control.append(at)
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
                closes = not self._in_string
            elif not self._depth and (char in ",}]" or char.isspace()):
                self.ended = True  # numbers and literals have no closing character
                return at
            elif char not in _OUTSIDE:
                self.ended, self.broken = True, self._depth > 0
                return at
            else:
                self._in_string = char == '"'
                closes = char in "}]"
                self._depth += (char in "{[") - closes
            if closes and not self._depth:
                self.ended = True
                return at + 1
        return len(text)


def stream_value(source: TextSource, write: Callable[[str], None]) -> Steps[bool]:
    """Write a JSON value as it comes; return whether it is whole.

    Control characters in strings are escaped, since many models write newlines as they are.
    """
    scanner = ValueScanner()
    while True:
        length = scanner.scan(source.rest)
        if length:
            write(scanner.escaped(source.take(length)))
        if scanner.ended:
            return not scanner.broken
        if not (yield from source.more()):
            return False


def read_value(source: TextSource) -> Steps[str]:
    """Read a JSON value; return its text.

    Raises:
        UnexpectedTextError: it is not whole.
    """
    pieces: list[str] = []
    if not (yield from stream_value(source, pieces.append)) or not pieces:
        raise UnexpectedTextError
    return "".join(pieces)


def read_string(source: TextSource) -> Steps[str]:
    """Read a JSON string; return its value.

    Raises:
        UnexpectedTextError: there is none, or it is not whole.
    """
    if (yield from source.peek()) != '"':
        raise UnexpectedTextError
    try:
        value = json.loads((yield from read_value(source)))
    except ValueError as error:
        raise UnexpectedTextError from error
    assert isinstance(value, str)
    return value
