"""How is it shown that a model reads or thinks, before it answers?"""

import sys
from collections.abc import Sequence
from time import monotonic

from llmctl.cli.repl.display import Display
from llmctl.cli.repl.screen import LiveRegion, WrittenRows
from llmctl.cli.repl.wrap import wrap_text


class ReasoningView:
    """Reasoning, dimmed, or folded into one line; beside the answer, so on stderr."""

    def __init__(self, display: Display) -> None:
        self.text = ""
        self._look = display
        self._screen = LiveRegion(sys.stderr)
        self._written = WrittenRows()
        self._begun_s = 0.0
        self._over = False

    def wait(self, seconds: float) -> None:
        """Show that nothing has come for so long."""
        self._screen.show([dim_row(f"… {seconds:.0f} s")])

    def paint(self) -> None:
        """Show what there is by now."""
        if not self._look.err.is_terminal:
            return
        self._begun_s = self._begun_s or monotonic()
        if not self._look.think:
            self._screen.show([dim_row(f"thinking… {monotonic() - self._begun_s:.0f} s")])
            return
        rows = self._left()
        self._screen.stay(rows[:-1], rows[-1:])
        self._written.add(rows[:-1])

    def _left(self) -> Sequence[str]:
        text, width = self.text.strip("\n"), self._screen.size[0]
        return self._written.left([dim_row(row) for row in wrap_text(text, width)], width)

    def end(self) -> None:
        """Leave what stays above the answer. Harmless to call again."""
        if self._over:
            return
        self._over = True
        if not self.text.strip() or not self._look.err.is_terminal:
            self._screen.show([])
        elif self._look.think:
            self._screen.stay([*self._left(), ""])
        else:
            took = f" for {monotonic() - self._begun_s:.1f} s" if self._begun_s else ""
            self._screen.stay([dim_row(f"▸ thought{took} (/think show)"), ""])


def dim_row(row: str) -> str:
    """Return a row as it looks beside an answer."""
    return f"\x1b[2m{row}\x1b[0m" if row else row
