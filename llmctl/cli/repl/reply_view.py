"""How is a reply shown while it is written?"""

import sys
import threading
from collections.abc import Sequence
from time import monotonic
from typing import Final, Protocol

from llmctl.cli.repl.display import Display
from llmctl.cli.repl.markdown import render_markdown, split_blocks
from llmctl.cli.repl.screen import LiveRegion, WrittenRows
from llmctl.cli.repl.spinner import ReasoningView
from llmctl.cli.repl.wrap import escape_control_characters
from llmctl.types import GenerationChunk

_FRAME_S: Final = 1 / 15
_COST: Final = 9
"""So many times as long as painting took nothing is painted."""
_PATIENCE_S: Final = 0.7
"""Silence after which a person is shown that something goes on."""


class ReplyView(Protocol):
    """Shows one reply, from when it is asked for."""

    def feed(self, chunk: GenerationChunk) -> None:
        """Show the next piece."""

    def end(self) -> None:
        """Show the rest; nothing more comes. Harmless to call again."""


def create_reply_view(display: Display, *, as_it_is: bool = False) -> ReplyView:
    """Return what shows a reply as the terminal can and the person likes.

    Args:
        as_it_is: the text is no Markdown.
    """
    shown: ReplyView = _Drawn(display) if display.drawn and not as_it_is else _Plain(display)
    return shown if display.stream else _Whole(shown)


class _Plain:
    """Writes pieces as they come; reasoning goes beside, to a terminal only."""

    def __init__(self, display: Display) -> None:
        self._look = display
        self._last = ""
        self._thinking = False
        self._beside = display.err.is_terminal and display.think

    def feed(self, chunk: GenerationChunk) -> None:
        if chunk.reasoning and self._beside:
            self._look.err.print(
                escape_control_characters(chunk.reasoning),
                style="dim",
                end="",
                markup=False,
                soft_wrap=True,
            )
            self._thinking = True
        if chunk.text:
            self._end_thinking()
            self._write(
                escape_control_characters(chunk.text) if sys.stdout.isatty() else chunk.text
            )

    def _end_thinking(self) -> None:
        if self._thinking:
            self._look.err.print("\n")
            self._thinking = False

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._last = text

    def end(self) -> None:
        self._end_thinking()
        if self._last and not self._last.endswith("\n"):
            self._write("\n")


class _Drawn:
    """Draws Markdown: finished blocks for good, the last one again and again.

    A thread of its own paints, so that what came last is seen though nothing follows it.
    """

    def __init__(self, display: Display) -> None:
        self._look = display
        self._screen = LiveRegion(sys.stdout)
        self._thought = ReasoningView(display)
        self._begun_s = monotonic()
        self._source = ""
        """What is not written for good yet."""
        self._written = WrittenRows()
        """What of it is, because the screen is full."""
        self._any = False
        """Whether a block stands above."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._painter = threading.Thread(target=self._run, name="llmctl-painter", daemon=True)
        self._painter.start()

    def feed(self, chunk: GenerationChunk) -> None:
        with self._lock:
            self._thought.text += escape_control_characters(chunk.reasoning)
            self._source += escape_control_characters(chunk.text)

    def _run(self) -> None:
        pause = _FRAME_S
        while not self._over.wait(pause):
            begun_s = monotonic()
            with self._lock:
                self._paint()
            # A block that grows without end takes longer and longer; the model needs the time more.
            pause = max(_FRAME_S, _COST * (monotonic() - begun_s))

    def _paint(self) -> None:
        if self._source or self._any:
            self._thought.end()
            self._paint_answer()
        elif self._thought.text:
            self._thought.paint()
        elif self._look.err.is_terminal and monotonic() - self._begun_s > _PATIENCE_S:
            self._thought.wait(monotonic() - self._begun_s)

    def _paint_answer(self) -> None:
        *finished, last = split_blocks(self._source)
        for block in finished:
            self._screen.stay(self._left(block))
            self._written.clear()
            self._any = True
        self._source = last
        rows = self._left(last)
        full = max(0, len(rows) - self._screen.size[1] + 2)
        self._screen.stay(rows[:full], rows[full:])
        self._written.add(rows[:full])

    def _left(self, block: str) -> Sequence[str]:
        width = self._look.out.width
        rows = render_markdown(block, self._look.out)
        return self._written.left(["", *rows] if rows and self._any else rows, width)

    def end(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._painter.join()
        if self._source or self._any:
            self._paint()
            self._screen.keep()
        self._thought.end()


class _Whole:
    """Shows a reply when all of it is there."""

    def __init__(self, inner: ReplyView) -> None:
        self._inner = inner
        self._chunks: list[GenerationChunk] = []

    def feed(self, chunk: GenerationChunk) -> None:
        self._chunks.append(chunk)

    def end(self) -> None:
        reasoning = "".join(chunk.reasoning for chunk in self._chunks)
        text = "".join(chunk.text for chunk in self._chunks)
        self._chunks.clear()
        self._inner.feed(GenerationChunk(text, reasoning=reasoning))
        self._inner.end()
