"""Terminal primitives: line wrapping, repainted rows, Ctrl-C handling and echo."""

import os
import shutil
import signal
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from types import FrameType
from typing import Final, TextIO

from rich.cells import cell_len, get_character_cell_size
from rich.text import Text

_DUMB_TERMS: Final = ("dumb", "unknown")
_NO_LINE_START: Final = frozenset("，。、；：？！）】》〉」』”’…—～·,.;:?!)]}%％‰℃")
"""Characters that may not start a line (W3C, Requirements for Chinese Text Layout, 3.1.6)."""
_NO_LINE_END: Final = frozenset("（【《〈「『“‘([{")
# Control characters in the output of a model could move the cursor: show them as pictures.
_PICTURES: Final = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {
    0x0D: None,
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
# Synchronized output: terminals that support it show what lies between as one frame.
_FRAME_START, _FRAME_END = "\x1b[?2026h", "\x1b[?2026l"
_PASTE_MODE_ON, _PASTE_MODE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"


def supports_escape_sequences() -> bool:
    """Return whether the terminal can do more than print lines."""
    return os.environ.get("TERM", "") not in _DUMB_TERMS or sys.platform == "win32"


def line_breaks(text: str, width: int) -> list[int]:
    """Return the offsets at which the lines after the first one start.

    Lines break after blanks, and between Chinese characters where their punctuation allows it;
    a word longer than a line breaks at the edge. Trailing blanks may exceed the width.
    """
    offsets: list[int] = []
    begin = column = 0
    candidate, candidate_column = 0, 0
    for at, character in enumerate(text):
        if character == "\n":
            offsets.append(at + 1)
            begin, column, candidate = at + 1, 0, at + 1
            continue
        size = get_character_cell_size(character)
        if at > begin and _may_break(text[at - 1], character):
            candidate, candidate_column = at, column
        if size and column + size > width and not character.isspace() and at > begin:
            if candidate <= begin:
                candidate, candidate_column = at, column
            offsets.append(candidate)
            begin, column = candidate, column - candidate_column
        column += size
    return offsets


def _may_break(before: str, after: str) -> bool:
    if after.isspace():
        return False
    if before.isspace():
        return True
    if after in _NO_LINE_START or before in _NO_LINE_END or not get_character_cell_size(after):
        return False
    return get_character_cell_size(before) == 2 or get_character_cell_size(after) == 2


def wrap_text(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` columns."""
    text = text.expandtabs(4)
    offsets = [0, *line_breaks(text, max(width, 2)), len(text)]
    return [text[start:end].rstrip() for start, end in pairwise(offsets)]


def escape_control_characters(text: str) -> str:
    """Replace the control characters of a text with visible symbols."""
    return text.translate(_PICTURES)


def dim_row(row: str) -> str:
    """Return a row with the escape sequences for dimmed text."""
    return f"\x1b[2m{row}\x1b[0m" if row else row


class LiveRegion:
    """The last rows of a terminal, which are repainted below permanent rows.

    Unlike `rich.live.Live` it repaints only rows that have changed, and it follows a change of the
    terminal's width.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        """Current columns and rows of the terminal."""
        columns, rows = shutil.get_terminal_size()
        return max(columns, 10), max(rows, 4)

    def write(self, permanent: Sequence[str], live: Sequence[str] = ()) -> None:
        """Write permanent rows in place of the live ones, and new live rows below them."""
        new = [*permanent, *live]
        # Unchanged rows are not painted again, so that they do not flicker.
        unchanged = next(
            (i for i, pair in enumerate(zip(self._rows, new, strict=False)) if pair[0] != pair[1]),
            min(len(self._rows), len(new)),
        )
        erase = self._erase(self._rows[unchanged:])
        text = "".join(f"{row}\n" for row in new[unchanged:])
        if erase or text:
            self._stream.write(f"{_FRAME_START}{erase}{text}{_FRAME_END}")
            self._stream.flush()
        self._rows = list(live)

    def freeze(self) -> None:
        """Make the live rows permanent."""
        self._rows = []

    def _erase(self, rows: Sequence[str]) -> str:
        """Return the sequence that clears these last rows and moves the cursor to their start."""
        columns, _ = self.size
        # A terminal that has become narrower wraps the rows that it shows.
        height = sum(max(1, -(-cell_len(_plain(row)) // columns)) for row in rows)
        return f"\x1b[{height}A\r\x1b[J" if height else ""


class WrittenRows:
    """Number of rows of a growing text that are permanent, across changes of the width."""

    def __init__(self) -> None:
        self._rows = 0
        self._characters = 0
        self._width = 0

    def remaining(self, rows: Sequence[str], width: int) -> Sequence[str]:
        """Return the rows, wrapped at `width`, that are not permanent yet.

        After a change of the width, a row that is permanent in part is returned as a whole.
        """
        if self._rows and width != self._width:
            totals = list(accumulate(map(_count_characters, rows)))
            self._rows = bisect_right(totals, self._characters)
            self._characters = totals[self._rows - 1] if self._rows else 0
        self._width = width
        return rows[self._rows :]

    def add(self, rows: Sequence[str]) -> None:
        """Count the next rows as permanent."""
        self._rows += len(rows)
        self._characters += sum(map(_count_characters, rows))

    def clear(self) -> None:
        """Start with another text."""
        self._rows = self._characters = 0


def _plain(row: str) -> str:
    return Text.from_ansi(row).plain


def _count_characters(row: str) -> int:
    return len("".join(_plain(row).split()))


@contextmanager
def single_interrupt() -> Iterator[Callable[[], None]]:
    """Raise `KeyboardInterrupt` at the first Ctrl-C only, and ignore the following ones.

    A further one would interrupt the storing of the partial reply.

    Returns:
        A function that makes the block ignore Ctrl-C from then on.
    """

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  signature of a handler
        ignore()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield ignore
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def suppress_echo() -> Iterator[None]:
    """Do not echo keys during a reply; the next prompt receives them.

    Bracketed paste stays on, so that a paste in the meantime arrives as one text and not as a
    command. Raw mode of `prompt_toolkit` would turn off Ctrl-C as a signal as well.
    """
    try:
        import termios
    except ImportError:  # Windows does not echo
        yield
        return
    try:
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
    except (termios.error, OSError, ValueError):
        yield
        return
    silent = list(before)
    # Without ICANON too: in line mode a terminal truncates lines after 4,096 bytes.
    silent[3] = before[3] & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(file, termios.TCSANOW, silent)
    _set_paste_mode(file, _PASTE_MODE_ON)
    try:
        yield
    finally:
        _set_paste_mode(file, _PASTE_MODE_OFF)
        with suppress(termios.error):
            termios.tcsetattr(file, termios.TCSANOW, before)


def _set_paste_mode(file: int, sequence: bytes) -> None:
    if supports_escape_sequences():
        with suppress(OSError):
            os.write(file, sequence)
