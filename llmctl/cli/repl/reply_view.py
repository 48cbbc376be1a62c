"""How is a reply shown while it is written?"""

import sys
import threading
from collections.abc import Sequence
from time import monotonic
from typing import Final, Protocol

from llmctl.cli.repl.display import Look
from llmctl.cli.repl.markdown import blocks, rendered
from llmctl.cli.repl.screen import Screen, Written
from llmctl.cli.repl.spinner import Thought
from llmctl.cli.repl.wrap import visible
from llmctl.types import GenerationChunk

_FRAME_S: Final = 1 / 15
_COST: Final = 9
"""So many times as long as painting took nothing is painted."""
_PATIENCE_S: Final = 0.7
"""Silence after which a person is shown that something goes on."""


class AnswerView(Protocol):
    """Shows one reply, from when it is asked for."""

    def feed(self, chunk: GenerationChunk) -> None:
        """Show the next piece."""

    def end(self) -> None:
        """Show the rest; nothing more comes. Harmless to call again."""


def view_of(look: Look, *, as_it_is: bool = False) -> AnswerView:
    """Return what shows a reply as the terminal can and the person likes.

    Args:
        as_it_is: the text is no Markdown.
    """
    shown: AnswerView = _Drawn(look) if look.drawn and not as_it_is else _Plain(look)
    return shown if look.stream else _Whole(shown)


class _Plain:
    """Writes pieces as they come; reasoning goes beside, to a terminal only."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._last = ""
        self._thinking = False
        self._beside = look.err.is_terminal and look.think

    def feed(self, chunk: GenerationChunk) -> None:
        if chunk.reasoning and self._beside:
            self._look.err.print(
                visible(chunk.reasoning), style="dim", end="", markup=False, soft_wrap=True
            )
            self._thinking = True
        if chunk.text:
            self._end_thinking()
            self._write(visible(chunk.text) if sys.stdout.isatty() else chunk.text)

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

    def __init__(self, look: Look) -> None:
        self._look = look
        self._screen = Screen(sys.stdout)
        self._thought = Thought(look)
        self._begun_s = monotonic()
        self._source = ""
        """What is not written for good yet."""
        self._written = Written()
        """What of it is, because the screen is full."""
        self._any = False
        """Whether a block stands above."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._painter = threading.Thread(target=self._run, name="llmctl-painter", daemon=True)
        self._painter.start()

    def feed(self, chunk: GenerationChunk) -> None:
        with self._lock:
            self._thought.text += visible(chunk.reasoning)
            self._source += visible(chunk.text)

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
        *finished, last = blocks(self._source)
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
        rows = rendered(block, self._look.out)
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

    def __init__(self, inner: AnswerView) -> None:
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
