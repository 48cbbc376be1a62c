"""What does Ctrl-C do while a reply is on its way, and where do keys go meanwhile?"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C raise `KeyboardInterrupt`, and swallow those after it.

    They would break off what the first one set going: keeping the part that has come.
    """

    def first(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def silent_keys() -> Iterator[None]:
    """Keep keys from being shown in the middle of a reply; the next line that is read has them."""
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
    silent[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(file, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(file, termios.TCSANOW, before)
