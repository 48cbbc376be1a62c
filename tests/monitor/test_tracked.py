"""The block decides how its run ended."""

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
        (LlmctlError("no room", hint="buy some"), "failed", "no room"),
        (ValueError("bad"), "failed", "ValueError: bad"),
        (KeyboardInterrupt(), "killed", "stopped by Ctrl-C"),
        (Terminated(signal.SIGTERM), "killed", "stopped by SIGTERM"),
        (asyncio.CancelledError(), "killed", "cancelled"),
    ],
)
def test_a_block_that_ends_so_makes_a_run_that_says_so(
    error: BaseException | None, status: str, reason: str
) -> None:
    tracker = end_by(error)
    assert (tracker.status, tracker.error) == (status, reason)


def test_only_an_unexpected_error_keeps_its_traceback() -> None:
    assert "ValueError: bad" in end_by(ValueError("bad")).texts["traceback.txt"]
    assert end_by(LlmctlError("no room")).texts == {}
    assert end_by(KeyboardInterrupt()).texts == {}


def test_a_signal_ends_the_block_and_the_old_handler_is_back_afterwards() -> None:
    tracker = RecordingTracker()
    with pytest.raises(SystemExit) as left, tracked(tracker):
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143
    assert tracker.status == "killed"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_program_that_handles_sigterm_itself_goes_on_doing_so() -> None:
    heard = []

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, hear)
    try:
        tracker = RecordingTracker()
        with tracked(tracker):
            signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        assert tracker.status == "finished"
    finally:
        signal.signal(signal.SIGTERM, before)
