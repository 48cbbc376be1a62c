"""What every room may tell the tracker, and the one that remembers nothing.

No method raises because of the store, and none waits for it except `log_model` (bounded) and `end`
(bounded): tracking never stops the work.
"""

import asyncio
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

from llmctl.errors import LlmctlError
from llmctl.types import DatasetContext, DatasetRef, RequestTrace, RunStatus


class Tracker(Protocol):
    """The record of one run of one command."""

    @property
    def run_id(self) -> str | None:
        """Id of the run; None where nothing is kept, or the store could not be reached yet."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Add settings. A mapping inside becomes `outer.inner`; None is left out."""

    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None
    ) -> None:
        """Add one point to each curve, measured now; with `model_id` they say something of it."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, over those of the same name (names: `llmctl.types`, `TAG_...`)."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder as it is now, under `folder` of the run's files."""

    def log_text(self, text: str, file: str) -> None:
        """Keep a text as a file of the run; `file` may have folders in it."""

    def log_dataset(self, dataset: DatasetRef, context: DatasetContext) -> None:
        """Say which data the run read or made."""

    def log_model(
        self, name: str, folder: Path, tags: Mapping[str, str] | None = None
    ) -> str | None:
        """Make what the run produced known as a LoggedModel; the files stay where they are.

        Returns the model's id; None if the store did not answer in time: the model is then made
        when it does, and its id is found in the run's `llmctl.model_id` tag.
        """

    def use_model(self, model_id: str) -> None:
        """Say that the run measures, serves or goes on from this LoggedModel."""

    def log_trace(self, trace: RequestTrace) -> None:
        """Add one request that a server answered."""

    def end(self, status: RunStatus, error: str = "") -> None:
        """Close the run and wait, bounded, until everything is written. Later calls do nothing."""


class NullTracker:
    """Remembers nothing: tracking is off, or this process is not the one that tells."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        pass

    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None
    ) -> None:
        pass

    def set_tags(self, tags: Mapping[str, str]) -> None:
        pass

    def log_artifact(self, path: Path, folder: str = "") -> None:
        pass

    def log_text(self, text: str, file: str) -> None:
        pass

    def log_dataset(self, dataset: DatasetRef, context: DatasetContext) -> None:
        pass

    def log_model(
        self,
        name: str,  # noqa: ARG002
        folder: Path,  # noqa: ARG002
        tags: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> str | None:
        return None

    def use_model(self, model_id: str) -> None:
        pass

    def log_trace(self, trace: RequestTrace) -> None:
        pass

    def end(self, status: RunStatus, error: str = "") -> None:
        pass


class Terminated(SystemExit):
    """A signal asked the process to end; it leaves with 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def tracked(tracker: Tracker) -> Iterator[Tracker]:
    """Lend a tracker, and close its run by what becomes of the block. Every exception goes on.

    A block that ends is finished; one left by Ctrl-C, SIGTERM or SIGHUP is killed; one left by any
    other exception is failed, with its text as the run's error. The two signals become exceptions
    (`Terminated`) while the block runs in the main thread, unless someone handles them already.
    """
    with _signals_as_exceptions():
        try:
            yield tracker
        except BaseException as error:
            status, reason = _verdict(error)
            if status == "failed" and not isinstance(error, LlmctlError):
                tracker.log_text("".join(traceback.format_exception(error)), "traceback.txt")
            tracker.end(status, reason)
            raise
        tracker.end("finished")


def _verdict(error: BaseException) -> tuple[RunStatus, str]:
    if isinstance(error, KeyboardInterrupt):
        return "killed", "stopped by Ctrl-C"
    if isinstance(error, Terminated):
        return "killed", f"stopped by {error.signal.name}"
    if isinstance(error, asyncio.CancelledError):
        return "killed", "cancelled"
    if isinstance(error, SystemExit):
        return ("finished", "") if error.code in (None, 0) else ("failed", f"exit: {error.code}")
    if isinstance(error, LlmctlError):
        return "failed", str(error)
    return "failed", "".join(traceback.format_exception_only(error)).strip()


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise Terminated(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # nohup ignores SIGHUP, and a server ends its own way on SIGTERM: both stay as they are.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
