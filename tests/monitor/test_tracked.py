"""The status of a run by the end of its block."""

import asyncio
import signal
from types import FrameType

import pytest

from llmctl.errors import LlmctlError
from llmctl.monitor import tracked
from llmctl.monitor.base import Terminated
from tests.fakes import RecordingTracker


def end_by(error: BaseException | None) -> RecordingTracker:
    tracker = RecordingTracker()
    if error is None:
        with tracked(tracker):
            pass
        return tracker
    with pytest.raises(type(error)), tracked(tracker):
        raise error
    return tracker


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "finished", ""),
        (SystemExit(0), "finished", ""),
        (SystemExit(3), "failed", "exit: 3"),
        (LlmctlError("disk full", hint="free some space"), "failed", "disk full"),
        (ValueError("bad"), "failed", "ValueError: bad"),
        (KeyboardInterrupt(), "killed", "stopped by Ctrl-C"),
        (Terminated(signal.SIGTERM), "killed", "stopped by SIGTERM"),
        (asyncio.CancelledError(), "killed", "cancelled"),
    ],
)
def test_the_status_and_error_of_a_run_follow_its_block(
    error: BaseException | None, status: str, reason: str
) -> None:
    tracker = end_by(error)
    assert (tracker.status, tracker.error) == (status, reason)


def test_only_an_unexpected_error_stores_its_traceback() -> None:
    assert "ValueError: bad" in end_by(ValueError("bad")).texts["traceback.txt"]
    assert end_by(LlmctlError("disk full")).texts == {}
    assert end_by(KeyboardInterrupt()).texts == {}


def test_a_signal_ends_the_block_and_the_handler_is_restored() -> None:
    tracker = RecordingTracker()
    with pytest.raises(SystemExit) as left, tracked(tracker):
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143
    assert tracker.status == "killed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_existing_sigterm_handler_is_kept() -> None:
    received = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        tracker = RecordingTracker()
        with tracked(tracker):
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert tracker.status == "finished"
    finally:
        signal.signal(signal.SIGTERM, before)
