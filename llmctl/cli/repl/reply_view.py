"""Views of a reply while it is generated: rendered Markdown, plain text, and reasoning."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final, Protocol

from llmctl.cli.repl.display import Display
from llmctl.cli.repl.markdown import render_markdown, split_blocks
from llmctl.cli.repl.terminal import (
    LiveRegion,
    WrittenRows,
    dim_row,
    escape_control_characters,
    wrap_text,
)
from llmctl.types import GenerationChunk

_FRAME_S: Final = 1 / 15
_IDLE_FACTOR: Final = 9
"""Pause after a frame, as a multiple of the time that the frame took."""
_WAIT_NOTICE_S: Final = 0.7
"""Silence after which the elapsed seconds are shown."""


class ReplyView(Protocol):
    """Shows one reply from the sending of the message on."""

    def add(self, chunk: GenerationChunk) -> None:
        """Show the next chunk."""

    def end(self) -> None:
        """Show the rest."""


@contextmanager
def create_reply_view(display: Display, *, raw: bool = False) -> Iterator[ReplyView]:
    """Yield the view that suits the terminal and the options; end it at last.

    Args:
        raw: the text is not Markdown.
    """
    markdown = display.renders_markdown and not raw
    view: ReplyView = _MarkdownView(display) if markdown else _PlainView(display)
    view = view if display.stream else _BufferedView(view)
    try:
        yield view
    finally:
        view.end()


class _PlainView:
    """Writes chunks as they arrive; reasoning goes to stderr, if that is a terminal."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._last = ""
        self._in_reasoning = False
        self._shows_reasoning = display.err.is_terminal and display.think

    def add(self, chunk: GenerationChunk) -> None:
        if chunk.reasoning and self._shows_reasoning:
            self._display.write_reasoning(chunk.reasoning)
            self._in_reasoning = True
        if chunk.text:
            self._end_reasoning()
            self._write(chunk.text)

    def _end_reasoning(self) -> None:
        if self._in_reasoning:
            self._display.write_reasoning("\n\n")
            self._in_reasoning = False

    def _write(self, text: str) -> None:
        self._display.write_reply(text)
        self._last = text

    def end(self) -> None:
        self._end_reasoning()
        if self._last and not self._last.endswith("\n"):
            self._write("\n")


class _BufferedView:
    """Shows a reply after its end."""

    def __init__(self, view: ReplyView) -> None:
        self._view = view
        self._chunks: list[GenerationChunk] = []

    def add(self, chunk: GenerationChunk) -> None:
        self._chunks.append(chunk)

    def end(self) -> None:
        for chunk in self._chunks:
            self._view.add(chunk)
        self._chunks.clear()
        self._view.end()


class _ReasoningView:
    """Reasoning on stderr: dimmed in full, or folded into one line."""

    def __init__(self, display: Display) -> None:
        self.text = ""
        self._display = display
        self._region = LiveRegion(sys.stderr)
        self._written = WrittenRows()
        self._start_s = 0.0
        self._ended = False

    def show_waiting(self, seconds: float) -> None:
        """Show how long nothing has arrived."""
        self._region.write([], [dim_row(f"… {seconds:.0f} s")])

    def paint(self) -> None:
        """Show the reasoning received so far."""
        if not self._display.err.is_terminal:
            return
        self._start_s = self._start_s or monotonic()
        if not self._display.think:
            self._region.write([], [dim_row(f"thinking… {monotonic() - self._start_s:.0f} s")])
            return
        rows = self._remaining()
        self._region.write(rows[:-1], rows[-1:])
        self._written.add(rows[:-1])

    def _remaining(self) -> Sequence[str]:
        text, width = self.text.strip("\n"), self._region.size[0]
        return self._written.remaining([dim_row(row) for row in wrap_text(text, width)], width)

    def end(self) -> None:
        """Write the permanent form above the reply. May be called again."""
        if self._ended:
            return
        self._ended = True
        if not self.text.strip() or not self._display.err.is_terminal:
            self._region.write([])
        elif self._display.think:
            self._region.write([*self._remaining(), ""])
        else:
            duration = f" for {monotonic() - self._start_s:.1f} s" if self._start_s else ""
            self._region.write([dim_row(f"▸ thought{duration} (/think show)"), ""])


class _MarkdownView:
    """Renders Markdown: complete blocks permanently, the last block again and again.

    A separate thread paints, so that the last chunk is visible even if no other one follows.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._region = LiveRegion(sys.stdout)
        self._reasoning = _ReasoningView(display)
        self._start_s = monotonic()
        self._source = ""
        """Markdown of the block that is not permanent yet."""
        self._written = WrittenRows()
        """Its rows that are permanent, because the block is higher than the screen."""
        self._has_block = False
        """Whether a permanent block stands above."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._painter = threading.Thread(target=self._run, name="llmctl-painter", daemon=True)
        self._painter.start()

    def add(self, chunk: GenerationChunk) -> None:
        with self._lock:
            self._reasoning.text += escape_control_characters(chunk.reasoning)
            self._source += escape_control_characters(chunk.text)

    def _run(self) -> None:
        pause_s = _FRAME_S
        while not self._ended.wait(pause_s):
            start_s = monotonic()
            with self._lock:
                self._paint()
            # The time of a frame grows with its block; leave most of the CPU to the model.
            pause_s = max(_FRAME_S, _IDLE_FACTOR * (monotonic() - start_s))

    def _paint(self) -> None:
        if self._source or self._has_block:
            self._reasoning.end()
            self._paint_reply()
        elif self._reasoning.text:
            self._reasoning.paint()
        elif self._display.err.is_terminal and monotonic() - self._start_s > _WAIT_NOTICE_S:
            self._reasoning.show_waiting(monotonic() - self._start_s)

    def _paint_reply(self) -> None:
        *complete, last = split_blocks(self._source)
        for block in complete:
            self._region.write(self._remaining(block))
            self._written.clear()
            self._has_block = True
        self._source = last
        rows = self._remaining(last)
        excess = max(0, len(rows) - self._region.size[1] + 2)
        self._region.write(rows[:excess], rows[excess:])
        self._written.add(rows[:excess])

    def _remaining(self, block: str) -> Sequence[str]:
        width = self._display.out.width
        rows = render_markdown(block, self._display.out)
        return self._written.remaining(["", *rows] if rows and self._has_block else rows, width)

    def end(self) -> None:
        self._ended.set()
        self._painter.join()
        if self._source or self._has_block:
            self._paint()
            self._region.freeze()
        self._reasoning.end()
