"""Text that arrives in pieces, for readers written as generators.

A reader is a generator that yields where it needs more text. What it reads does not depend on how
the text was cut: every decision waits until the text in question has come, or has ended.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from llmctl.engine.chat.stop_strings import partial_match_length

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A reader: yields where it needs more text, returns a `T`."""


class UnexpectedTextError(Exception):
    """The text is not what the format has here, or ends here."""


class CutOffError(UnexpectedTextError):
    """The text ends within a call."""


class TextSource:
    """The text of one response, and the position up to which it is read."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._start = 0
        """Characters of the response before `_text`."""
        self._keeps = False
        self._ended = False

    def feed(self, piece: str) -> None:
        """Append a piece."""
        if not self._keeps:
            self._start += self._at
            self._text, self._at = self._text[self._at :], 0
        self._text += piece

    def end(self) -> None:
        """State that no more text will come."""
        self._ended = True

    @property
    def rest(self) -> str:
        """The text that has come and is not read."""
        return self._text[self._at :]

    @property
    def position(self) -> int:
        """Characters read so far, for `rewind`. The text from here is kept until `release`."""
        if not self._keeps:
            self._start += self._at
            self._text, self._at = self._text[self._at :], 0
            self._keeps = True
        return self._start + self._at

    def rewind(self, position: int) -> None:
        """Go back to a position that was asked for since the last `release`."""
        assert position >= self._start
        self._at = position - self._start

    def release(self) -> None:
        """Forget the text that is read."""
        self._keeps = False

    def take(self, length: int) -> str:
        """Read characters that have come."""
        taken = self._text[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def more(self) -> Steps[bool]:
        """Wait for more text; return whether some has come."""
        size = len(self._text) - self._at
        while not self._ended:
            yield
            if len(self._text) - self._at > size:
                return True
        return False

    def peek(self) -> Steps[str]:
        """Return the next character, empty at the end."""
        while self._at >= len(self._text):
            if not (yield from self.more()):
                return ""
        return self._text[self._at]

    def space(self) -> Steps[str]:
        """Read white space; return it."""
        taken = ""
        while (char := (yield from self.peek())) and char.isspace():
            taken += self.take(1)
        return taken

    def starts(self, *marks: str) -> Steps[str | None]:
        """Return the first of the marks that the text starts with."""
        for mark in marks:
            while not self._text.startswith(mark, self._at):
                if not mark.startswith(self.rest) or not (yield from self.more()):
                    break
            else:
                return mark
        return None

    def accept(self, *marks: str) -> Steps[str | None]:
        """Read the first of the marks that the text starts with; return it."""
        mark = yield from self.starts(*marks)
        if mark is not None:
            self.take(len(mark))
        return mark

    def expect(self, *marks: str) -> Steps[str]:
        """Read one of the marks.

        Raises:
            UnexpectedTextError: the text starts with none of them.
        """
        mark = yield from self.accept(*marks)
        if mark is None:
            if any(mark.startswith(self.rest) for mark in marks):
                raise CutOffError
            raise UnexpectedTextError
        return mark

    def until(self, *marks: str, limit: int = 256, keep_mark: bool = False) -> Steps[str]:
        """Read up to the first of the marks, and the mark; return the text before it.

        Args:
            marks: of which one must come.
            limit: characters within which it must.
            keep_mark: leave the mark unread.

        Raises:
            UnexpectedTextError: none comes within `limit` characters.
        """
        while True:
            rest = self._text[self._at : self._at + limit]
            found = _first(rest, marks)
            if found is not None:
                at, mark = found
                text = self.take(at)
                self.take(0 if keep_mark else len(mark))
                return text
            if len(rest) >= limit:
                raise UnexpectedTextError
            if not (yield from self.more()):
                raise CutOffError

    def stream(self, marks: Sequence[str], write: Callable[[str], None]) -> Steps[str | None]:
        """Write the text up to the first of the marks, which is left; return it, `None` at the end.

        What may be the beginning of a mark is written once it is known not to be.
        """
        while True:
            rest = self.rest
            found = _first(rest, marks)
            if found is not None:
                at, mark = found
                if at:
                    write(self.take(at))
                return mark
            length = len(rest) - partial_match_length(rest, marks)
            if length:
                write(self.take(length))
            if not (yield from self.more()):
                if self.rest:
                    write(self.take(len(self.rest)))
                return None


def _first(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """Return the place and the mark that comes first; of two at one place, the longer one."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    if not found:
        return None
    at, _, mark = min(found)
    return at, mark
