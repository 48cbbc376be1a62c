"""The interface of trackers, and the lifetime of a run.

No method of a tracker raises. Only `log_model` and `end` wait for the store, for a limited time.
"""

import asyncio
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llmctl.errors import LlmctlError
from llmctl.types import DatasetContext, DatasetRef, RequestTrace, RunStatus


class Tracker:
    """The record of one run. This class records nothing: tracking is off."""

    @property
    def run_id(self) -> str | None:
        """Id of the run; None if nothing is recorded, or the store was not reached yet."""
        return None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Add parameters. A nested mapping becomes `outer.inner`; None is left out."""

    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None
    ) -> None:
        """Add one point to each metric, with the current time; `model_id` is the measured model."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, and overwrite those of the same name (names: `llmctl.types`, `TAG_...`)."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Store a copy of a file or folder as it is now, below `folder` of the artifacts."""

    def log_text(self, text: str, file: str) -> None:
        """Store a text as an artifact; `file` is a relative path."""

    def log_dataset(self, dataset: DatasetRef, context: DatasetContext) -> None:
        """Record a dataset that the run read or wrote."""

    def log_model(
        self, name: str, folder: Path, tags: Mapping[str, str] | None = None
    ) -> str | None:
        """Register the model that the run produced as a LoggedModel; its files stay in place.

        Returns the id of the model; None if the store did not answer in time. The model is then
        created later, and the run's tag `llmctl.model_id` holds its id.
        """

    def use_model(self, model_id: str) -> None:
        """Record that the run measures, serves or trains this LoggedModel."""

    def complete_ids(self, file: Path) -> None:
        """Write the ids of the run and its model into a JSON object once the store assigned them.

        `run_id` changes if it is null or absent, `model_id` if it is null.
        """

    def log_trace(self, trace: RequestTrace) -> None:
        """Record a request that a server answered."""

    def end(self, status: RunStatus, error: str = "") -> None:
        """End the run and wait, for a limited time, for delivery. Later calls do nothing."""


class Terminated(SystemExit):
    """A signal ended the process; the exit code is 128 plus the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def tracked(tracker: Tracker) -> Iterator[Tracker]:
    """Yield a tracker, and end its run with the status of the block. Exceptions propagate.

    The status is `finished`; `killed` after Ctrl-C, SIGTERM or SIGHUP; `failed` after any other
    exception, with its text as the error. SIGTERM and SIGHUP raise `Terminated` while the block
    runs in the main thread, unless they have a handler already.
    """
    with _signals_as_exceptions():
        try:
            yield tracker
        except BaseException as error:
            status, reason = _final_status(error)
            if status == "failed" and not isinstance(error, LlmctlError):
                tracker.log_text("".join(traceback.format_exception(error)), "traceback.txt")
            tracker.end(status, reason)
            raise
        tracker.end("finished")


def _final_status(error: BaseException) -> tuple[RunStatus, str]:
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

    def terminate(number: int, _: FrameType | None) -> NoReturn:
        raise Terminated(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # nohup ignores SIGHUP, and a server has its own handler for SIGTERM: both are kept.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
