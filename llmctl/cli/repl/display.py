"""What can this terminal show, and in which voice is something beside the answer said?"""

import os
import sys
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from llmctl.cli.repl.markdown import THEME
from llmctl.cli.repl.wrap import escape_control_characters, wrap_text

DUMB_TERMS = ("dumb", "unknown")


@dataclass
class Display:
    """How the conversation is shown; `out` is for answers, `err` for everything else."""

    plain: bool = False
    """Answers are written as they come, without Markdown."""
    think: bool = True
    """Reasoning is shown whole; otherwise a line says that there was some."""
    stats: bool = False
    stream: bool = True
    """A reply is shown while it is written."""
    out: Console = field(default_factory=lambda: Console(theme=THEME, highlight=False))
    err: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    @property
    def drawn(self) -> bool:
        """Whether Markdown is drawn: on a terminal that can move its cursor, unless unwanted."""
        return not self.plain and sys.stdout.isatty() and supports_escape_sequences()

    def say(self, text: str, style: str = "dim") -> None:
        """Say something beside the answer."""
        text = escape_control_characters(text)
        if self.err.is_terminal:
            text = "\n".join(wrap_text(text, self.err.width))
        self.err.print(Text(text, style=style), soft_wrap=True)

    def say_line(self, text: str) -> None:
        """Say as much of a text as goes on one line."""
        text = escape_control_characters(text).replace("\n", " ").replace("\t", " ")
        if self.err.is_terminal and cell_len(text) > self.err.width:
            text = set_cell_size(text, self.err.width - 1).rstrip() + "…"
        self.say(text, "")

    def error(self, message: str, hint: str = "") -> None:
        """Say what failed and what to do about it."""
        self.say(f"error: {message}", "red")
        if hint:
            self.say(f"hint: {hint}", "")


def supports_escape_sequences() -> bool:
    """Whether the terminal knows more than to write on."""
    return os.environ.get("TERM", "") not in DUMB_TERMS or sys.platform == "win32"
