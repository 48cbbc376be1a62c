"""How do rows that still change stand below those that stay, without flicker?"""

import shutil
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.text import Text

# Terminals that know it show what comes between as one frame; others ignore it.
_FRAME, _FRAME_END = "\x1b[?2026h", "\x1b[?2026l"


class Screen:
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
        if not rows and list(tail) == self._tail:
            return
        begin = self._rewound()
        text = "".join(f"{row}\n" for row in (*rows, *tail))
        self._stream.write(f"{_FRAME}{begin}{text}{_FRAME_END}")
        self._stream.flush()
        self._tail = list(tail)

    def show(self, tail: Sequence[str]) -> None:
        """Paint another tail."""
        self.stay((), tail)

    def keep(self) -> None:
        """Let the tail stay as it is."""
        self._tail = []

    def _rewound(self) -> str:
        """Return what brings the cursor to where the tail begins, and clears from there."""
        columns, _ = self.size
        # A terminal that has become narrower breaks the rows that it shows.
        height = sum(max(1, -(-_width(row) // columns)) for row in self._tail)
        return f"\x1b[{height}A\r\x1b[J" if height else ""


def _width(row: str) -> int:
    return cell_len(Text.from_ansi(row).plain)
