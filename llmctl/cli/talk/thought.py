"""How is it shown that a model reads or thinks, before it answers?"""

import sys
from time import monotonic

from llmctl.cli.talk.look import Look
from llmctl.cli.talk.screen import Screen
from llmctl.cli.talk.wrap import lines


class Thought:
    """Reasoning, dimmed, or folded into one line; beside the answer, so on stderr."""

    def __init__(self, look: Look) -> None:
        self.text = ""
        self._look = look
        self._screen = Screen(sys.stderr)
        self._stayed = 0
        self._begun_s = 0.0
        self._over = False

    def wait(self, seconds: float) -> None:
        """Show that nothing has come for so long."""
        self._screen.show([dimmed(f"… {seconds:.0f} s")])

    def paint(self) -> None:
        """Show what there is by now."""
        if not self._look.err.is_terminal:
            return
        self._begun_s = self._begun_s or monotonic()
        if not self._look.think:
            self._screen.show([dimmed(f"thinking… {monotonic() - self._begun_s:.0f} s")])
            return
        rows = self._rows()
        self._screen.stay(rows[self._stayed : -1], rows[-1:])
        self._stayed = max(self._stayed, len(rows) - 1)

    def _rows(self) -> list[str]:
        text = self.text.strip("\n")
        return [dimmed(row) for row in lines(text, self._screen.size[0])]

    def end(self) -> None:
        """Leave what stays above the answer. Harmless to call again."""
        if self._over:
            return
        self._over = True
        if not self.text.strip() or not self._look.err.is_terminal:
            self._screen.show([])
        elif self._look.think:
            self._screen.stay([*self._rows()[self._stayed :], ""])
        else:
            took = f" for {monotonic() - self._begun_s:.1f} s" if self._begun_s else ""
            self._screen.stay([dimmed(f"▸ thought{took} (/think show)"), ""])


def dimmed(row: str) -> str:
    """Return a row as it looks beside an answer."""
    return f"\x1b[2m{row}\x1b[0m" if row else row
