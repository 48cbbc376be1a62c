"""Line plot for the terminal in braille characters, with two by four dots per character."""

import math
from collections.abc import Sequence
from typing import Final

_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a braille character, by row from the top, then by column."""
_BRAILLE: Final = 0x2800


def draw_curve(xs: Sequence[float], ys: Sequence[float], *, width: int, height: int) -> list[str]:
    """Return the lines of a plot without axes; a value that is not finite leaves a gap.

    Args:
        xs: in ascending order.
        width, height: in characters.
    """
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not points:
        return [" " * width] * height
    columns, rows = 2 * width, 4 * height
    left, right = xs[0], xs[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)

    def column(x: float) -> int:
        return 0 if right == left else round((x - left) / (right - left) * (columns - 1))

    def row(y: float) -> int:
        return rows // 2 if high == low else round((high - y) / (high - low) * (rows - 1))

    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            before = None
            continue
        here = (column(x), row(y))
        for at, down in _line(before or here, here):
            cells[down // 4][at // 2] |= _DOTS[down % 4][at % 2]
        before = here
    return ["".join(chr(_BRAILLE + cell) if cell else " " for cell in line) for line in cells]


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [
        (round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps))
        for step in range(steps + 1)
    ]
