"""Console output of a chat: notices beside the reply, and the statistics of replies."""

import sys
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from llmctl.cli.repl.markdown import THEME
from llmctl.cli.repl.terminal import (
    escape_control_characters,
    supports_escape_sequences,
    wrap_text,
)
from llmctl.services.chat.context_window import WARNING_SHARE
from llmctl.services.chat.conversation import ReplyStats
from llmctl.services.chat.reply import ChatReply

CONTEXT_BAR_CELLS = 10


@dataclass
class Display:
    """How a chat is displayed: replies on `out`, everything else on `err`."""

    plain: bool = False
    """Write replies as the model returns them, without rendered Markdown."""
    think: bool = True
    """Show reasoning in full; otherwise one line says that there was some."""
    stats: bool = False
    """Show statistics after each reply."""
    stream: bool = True
    """Show a reply while it is generated."""
    out: Console = field(default_factory=lambda: Console(theme=THEME, highlight=False))
    err: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    @property
    def renders_markdown(self) -> bool:
        """Whether replies are rendered: on a terminal that can move its cursor, unless `plain`."""
        return not self.plain and sys.stdout.isatty() and supports_escape_sequences()

    def notice(self, text: str, style: str = "dim") -> None:
        """Print a notice on `err`, wrapped at the width of the terminal."""
        text = escape_control_characters(text)
        if self.err.is_terminal:
            text = "\n".join(wrap_text(text, self.err.width))
        self.err.print(Text(text, style=style), soft_wrap=True)

    def notice_line(self, text: str) -> None:
        """Print a notice on one line, truncated at the width of the terminal."""
        text = escape_control_characters(text).replace("\n", " ").replace("\t", " ")
        if self.err.is_terminal and cell_len(text) > self.err.width:
            text = set_cell_size(text, self.err.width - 1).rstrip() + "…"
        self.notice(text, "")

    def write_reply(self, text: str) -> None:
        """Write a part of a reply to stdout as it is, but for control characters on a terminal."""
        sys.stdout.write(escape_control_characters(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def write_reasoning(self, text: str) -> None:
        """Write a part of the reasoning to `err`."""
        text = escape_control_characters(text)
        self.err.print(text, style="dim", end="", markup=False, soft_wrap=True)

    def error(self, message: str, hint: str = "") -> None:
        """Print an error and its hint."""
        self.notice(f"error: {message}", "red")
        if hint:
            self.notice(f"hint: {hint}", "")


def format_context_usage(used: int, context: int) -> str:
    """Return used and available context tokens with a bar; `context` 0 is unknown."""
    if not context:
        return f"{used:,} tokens used"
    share = min(used / context, 1.0)
    full = round(share * CONTEXT_BAR_CELLS)
    bar = "█" * full + "░" * (CONTEXT_BAR_CELLS - full)
    return f"context {bar} {used:,} / {context:,} ({share:.0%})"


def format_stats(stats: ReplyStats) -> str:
    """Return the statistics of a reply."""
    parts = []
    if stats.ttft_s is not None:
        parts.append(f"{stats.ttft_s:.2f} s to first token")
    parts.append(f"{stats.completion_tokens:,} tokens in {stats.duration_s:.1f} s")
    if (speed := stats.tokens_per_s) is not None:
        parts.append(f"{speed:.1f} tokens/s")
    if stats.prompt_tokens is not None:
        cached = f", {stats.cached_tokens:,} of them cached" if stats.cached_tokens else ""
        parts.append(f"{stats.prompt_tokens:,} prompt tokens{cached}")
    if stats.used_tokens is not None:
        parts.append(format_context_usage(stats.used_tokens, stats.context_length))
    return " · ".join(parts)


def length_limit_message(reply: ChatReply, limit: int | None, option: str) -> str:
    """Return why a reply was cut off.

    Args:
        limit: maximum tokens of a reply.
        option: option or command that sets the limit.
    """
    if limit is not None and reply.tokens >= limit:
        return f"cut off: after {limit:,} tokens; {option} {2 * limit} allows more"
    return "cut off: the context is full"


def context_warning(stats: ReplyStats) -> str:
    """Return a warning if the context is nearly full, else an empty string."""
    used, context = stats.used_tokens, stats.context_length
    if used is None or not context or used < WARNING_SHARE * context:
        return ""
    return f"the context is {used / context:.0%} full ({used:,} of {context:,} tokens)"
