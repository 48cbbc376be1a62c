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


def _width(row: str) -> int:
    return cell_len(Text.from_ansi(row).plain)
