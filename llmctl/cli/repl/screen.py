"""How do rows that still change stand below those that stay, without flicker?"""

import shutil
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TextIO

from rich.cells import cell_len
from rich.text import Text

# Terminals that know it show what comes between as one frame; others ignore it.
_FRAME, _FRAME_END = "\x1b[?2026h", "\x1b[?2026l"


class LiveRegion:
    """The end of what is on a terminal: rows that stay, and below them a tail that is repainted."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tail: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows, as they are now."""
        columns, rows = shutil.get_terminal_size()
        return max(columns, 10), max(rows, 4)

    def stay(self, rows: Sequence[str], tail: Sequence[str] = ()) -> None:
        """Write rows for good, and a new tail below them."""
        new = [*rows, *tail]
        # Rows that are there already stay untouched: what is not painted cannot flicker.
        same = next(
            (i for i, pair in enumerate(zip(self._tail, new, strict=False)) if pair[0] != pair[1]),
            min(len(self._tail), len(new)),
        )
        begin = self._rewound(self._tail[same:])
        text = "".join(f"{row}\n" for row in new[same:])
        if begin or text:
            self._stream.write(f"{_FRAME}{begin}{text}{_FRAME_END}")
            self._stream.flush()
        self._tail = list(tail)

    def show(self, tail: Sequence[str]) -> None:
        """Paint another tail."""
        self.stay((), tail)

    def keep(self) -> None:
        """Let the tail stay as it is."""
        self._tail = []

    def _rewound(self, painted: Sequence[str]) -> str:
        """Return what brings the cursor to where these last rows begin, and clears from there."""
        columns, _ = self.size
        # A terminal that has become narrower breaks the rows that it shows.
        height = sum(max(1, -(-_width(row) // columns)) for row in painted)
        return f"\x1b[{height}A\r\x1b[J" if height else ""


class WrittenRows:
    """How many rows of a text that grows are written for good, also when the width changes."""

    def __init__(self) -> None:
        self._rows = 0
        self._signs = 0
        self._width = 0

    def left(self, rows: Sequence[str], width: int) -> Sequence[str]:
        """Return the rows, made for a width, that are still to be written.

        A row that begins with what was written at another width is written again as a whole.
        """
        if self._rows and width != self._width:
            signs = list(accumulate(map(_signs, rows)))
            self._rows = bisect_right(signs, self._signs)
            self._signs = signs[self._rows - 1] if self._rows else 0
        self._width = width
        return rows[self._rows :]

    def add(self, rows: Sequence[str]) -> None:
        """Note that the next rows are written now."""
        self._rows += len(rows)
        self._signs += sum(map(_signs, rows))

    def clear(self) -> None:
        """Begin with another text."""
        self._rows = self._signs = 0


def _signs(row: str) -> int:
    return len("".join(Text.from_ansi(row).plain.split()))


def _width(row: str) -> int:
    return cell_len(Text.from_ansi(row).plain)
