"""Has somebody asked the training to end? Ctrl-C and SIGTERM wait for the next safe moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmctl.errors import LlmctlError


class TrainingInterrupted(BaseException):
    """The training stopped where it can go on: the weights are those of the last whole step.

    No `Exception`, so that nothing on the way mistakes it for a failure.
    """


class AlreadyFinished(BaseException):
    """The state that was gone on with is one that the training ends with."""


class StopRequest:
    """A wish to end.

    Args:
        patient: a second signal changes nothing; otherwise it does not wait. Of several processes
            each may get the same Ctrl-C twice, from the terminal and from its parent.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self._patient = patient

    def ask(self, number: int, _: FrameType | None = None) -> None:
        if self.signal is not None and not self._patient:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise `TrainingInterrupted` if a stop was requested. Call it only between steps."""
        if self.signal is not None:
            raise TrainingInterrupted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM while the block runs, if it runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class TrainingDivergedError(LlmctlError):
    """The loss or its gradient is no number any more."""
