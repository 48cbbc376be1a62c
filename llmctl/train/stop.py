"""Stop requests by Ctrl-C and SIGTERM, and the exceptions that end a training early."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmctl.errors import LlmctlError


class TrainingInterrupted(BaseException):
    """The training stopped between two steps: the weights are those of the last completed step.

    Not an `Exception`, so that no handler on the way takes it for a failure.
    """


class AlreadyFinished(BaseException):
    """The checkpoint to resume from is already the final state."""


class TrainingDivergedError(LlmctlError):
    """The loss or its gradient is NaN or infinite."""


class StopRequest:
    """A request to stop at the next safe point.

    Args:
        ignore_repeats: a second signal does nothing; otherwise it raises `KeyboardInterrupt`. With
            several processes each may get the same Ctrl-C twice, from the terminal and from its
            parent.
    """

    def __init__(self, *, ignore_repeats: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self._ignore_repeats = ignore_repeats

    def request(self, number: int, _: FrameType | None = None) -> None:
        """Store the signal. Usable as a signal handler."""
        if self.signal is not None and not self._ignore_repeats:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise `TrainingInterrupted` if a stop was requested. Call it only between two steps."""
        if self.signal is not None:
            raise TrainingInterrupted

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM while the block runs, if it runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
