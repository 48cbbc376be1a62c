"""What does Ctrl-C do while a reply is on its way, and where do keys go meanwhile?"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from llmctl.cli.repl.display import supports_escape_sequences

_MARK_PASTES: Final = b"\x1b[?2004h"
_NO_MARKS: Final = b"\x1b[?2004l"


@contextmanager
def single_interrupt() -> Iterator[Callable[[], None]]:
    """Let the first Ctrl-C raise `KeyboardInterrupt`, and swallow those after it.

    They would break off what the first one set going: keeping the part that has come.

    Returns:
        A function after which not even the first one raises, until the block ends.
    """

    def no_more() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def first(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        no_more()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        yield no_more
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def suppress_echo() -> Iterator[None]:
    """Keep keys from being shown in the middle of a reply; the next line that is read has them.

    What is pasted meanwhile comes between marks, so that it is one text then, and no command.
    """
    try:
        import termios
    except ImportError:  # Windows shows none
        yield
        return
    try:
        file = sys.stdin.fileno()
        before = termios.tcgetattr(file)
    except (termios.error, OSError, ValueError):
        yield
        return
    silent = list(before)
    # No lines either: the terminal would cut one after 4,096 bytes.
    silent[3] = before[3] & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(file, termios.TCSANOW, silent)
    _mark_pastes(file, _MARK_PASTES)
    try:
        yield
    finally:
        _mark_pastes(file, _NO_MARKS)
        with suppress(termios.error):
            termios.tcsetattr(file, termios.TCSANOW, before)


def _mark_pastes(file: int, how: bytes) -> None:
    if supports_escape_sequences():
        with suppress(OSError):
            os.write(file, how)
