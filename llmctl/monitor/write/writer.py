"""A background thread that spools the events of a run, and writes them to the store in batches.

The caller only appends to a list. The thread spools the collected events twice a second, so that a
killed process loses only events of about the last second. After a write it pauses for 100 times the
duration of the write (between 1 s and 10 s), so that it takes about 1 % of a core.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from llmctl.errors import LlmctlError
from llmctl.monitor.store import redact
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.events import Event, MetricEvent, TagEvent, TraceEvent
from llmctl.monitor.write.spool import Spool
from llmctl.types import TAG_HEARTBEAT

_LAST_ATTEMPT_S = 1.0
"""Wait for an attempt to reach the store before its spool is left to others."""
MAX_PENDING: Final = 200_000
"""Maximum number of events in memory, about 60 MB. Further metrics and traces are dropped."""
END_WAIT_S: Final = 30.0
"""Maximum time that `end` waits for a store that answers."""
OUTAGE_WAIT_S: Final = 3.0
"""The same for a store that does not answer yet, or refuses the rest."""
_PAUSE_S: Final = (1.0, 10.0)
"""Shortest and longest pause between two writes."""
_SPOOL_S: Final = 0.5
"""Shortest interval of spooling; else 100 times the duration of the spooling."""
_RETRY_S: Final = (1.0, 30.0)
"""First and longest wait between two attempts in an outage."""
_BUSY_HEARTBEAT_S: Final = 10.0
_IDLE_HEARTBEAT_S: Final = 60.0


class EventWriter:
    """Takes events from any thread without blocking it."""

    def __init__(
        self,
        connect: Callable[[bool], Delivery],
        on_connected: Callable[[Delivery], None],
        spool: Spool | None,
        warn: Callable[[str], None],
    ) -> None:
        """Prepare the thread; `start` starts it.

        Args:
            connect: opens the store and creates the run; repeated until it returns. Its argument
                is whether it was called before.
            on_connected: called once from the thread, after the first events are delivered; its
                errors are ignored.
            spool: None if the disk cannot be written.
            warn: called once when the store becomes unavailable, and at the end with the fate of
                undelivered events.
        """
        self.attempted = threading.Event()
        """Set after the first attempt to reach the store, successful or not."""
        self.target: Delivery | None = None
        """None until the run is in the store."""
        self.is_unavailable = False
        """Whether the last attempt failed."""
        self._connect = connect
        self._on_connected = on_connected
        self._spool = spool
        self._warn = warn
        self._lock, self._spool_lock = threading.Lock(), threading.Lock()
        self._incoming: list[Event] = []
        self._batch: list[Event] = []
        """Events to write next, all of them in the spool. Only the thread changes it."""
        self._dropped = 0
        self._answered = self._warned = False
        self._retry_s = _RETRY_S[0]
        self._due = self._tried = self._heartbeat_at = 0.0
        self._wake, self._flush, self._done = (threading.Event() for _ in range(3))
        self._ending = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="llmctl-tracking", daemon=True)

    def start(self) -> None:
        """Start the thread. Events put before are written together with the new run."""
        self._thread.start()

    def put(self, events: Sequence[Event]) -> None:
        """Add events to write."""
        with self._lock:
            if len(self._incoming) + len(self._batch) >= MAX_PENDING:
                kept = [e for e in events if not isinstance(e, MetricEvent | TraceEvent)]
                self._dropped += len(events) - len(kept)
                events = kept
            self._incoming.extend(events)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """End the current pause, so that the collected events are written now."""
        self._flush.set()
        self._wake.set()

    def end(self) -> None:
        """Write the rest and stop. Events not delivered in time stay in the spool."""
        self._ending = True
        self.flush()
        began = time.monotonic()
        try:
            while not self._done.wait(0.05) and time.monotonic() - began < self._end_wait_s():
                pass
        finally:  # a second Ctrl-C ends the wait, but not the record
            if not self._done.is_set():
                self._abandon()
        if self._dropped:
            self._report(f"{self._dropped:,} metrics and traces were dropped: too many pending")

    def _end_wait_s(self) -> float:
        refusing = self.target is not None and self.target.is_refusing
        if (self._answered or not self.is_unavailable) and not refusing:
            return END_WAIT_S
        return OUTAGE_WAIT_S if self._due < math.inf else 0.0

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            self._collect()
            spool_s = max(100 * (time.monotonic() - began), _SPOOL_S)
            hurry = self._ending or (self._flush.is_set() and not self.is_unavailable)
            self._flush.clear()
            if not self._abandoned and (began >= self._due or (hurry and self._due < math.inf)):
                self._write()
            self.attempted.set()
            if self._abandoned or (self._ending and not self._batch and not self._incoming):
                break
            if self._batch or self.is_unavailable or time.monotonic() < self._due:
                self._flush.wait(_SPOOL_S if self._ending else spool_s)
            else:
                self._wake.wait(_IDLE_HEARTBEAT_S)
            self._wake.clear()
        with self._spool_lock:
            if self._spool is not None:
                self._spool.remove()
        self._done.set()

    def _collect(self) -> None:
        """Move the incoming events to the batch and the spool, with a heartbeat if one is due."""
        now = time.monotonic()
        with self._lock:
            events, self._incoming = self._incoming, []
            busy = bool(self._batch or events)
            if now - self._heartbeat_at >= (_BUSY_HEARTBEAT_S if busy else _IDLE_HEARTBEAT_S - 1):
                self._heartbeat_at = now
                events.append(TagEvent(TAG_HEARTBEAT, f"{time.time():.0f}"))
            self._batch += events
        with self._spool_lock, suppress(Exception):  # `_abandon` reports a disk that stays full
            if self._spool is not None and events:
                self._spool.append(events)

    def _write(self) -> None:
        is_first = self.target is None
        try:
            if self.target is None:
                target = self._connect(self.is_unavailable)
                with self._spool_lock, suppress(OSError):
                    if self._spool is not None:
                        self._spool.set_run_id(target.run_id)
                self.target = target
            elif self.is_unavailable:
                self.target.mark_running()
            self._answered = True
            began = time.monotonic()
            self.target.deliver(self._batch)
        except Exception as error:  # no error of the store may stop the work
            self._fail(error)
            return
        now = time.monotonic()
        self._due = now + min(max(100 * (now - began), _PAUSE_S[0]), _PAUSE_S[1])
        self.is_unavailable, self._retry_s = False, _RETRY_S[0]
        with self._spool_lock, suppress(Exception):
            if self._spool is not None:
                self._spool.replace(self.target.run_id, self._batch)
        if is_first:
            self.attempted.set()
            with suppress(Exception):
                self._on_connected(self.target)

    def _fail(self, error: Exception) -> None:
        self._retry_s = min(2 * self._retry_s, _RETRY_S[1]) if self.is_unavailable else _RETRY_S[0]
        # An error of llmctl stays until the user acts.
        lasting = isinstance(error, LlmctlError)
        self._due = math.inf if lasting else time.monotonic() + self._retry_s
        self.is_unavailable, self._answered = True, False
        if not self._warned:
            self._warned = True
            reason = redact(str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._report(
                f"the tracking store does not answer ({reason}); the work continues, and the "
                "record is kept on the disk until it does"
            )

    def _abandon(self) -> None:
        """Spool all undelivered events for the next llmctl that opens the store."""
        self._abandoned = True
        with self._spool_lock:
            spool, self._spool = self._spool, None
        # An attempt that is under way must not succeed after another process took the spool.
        self.flush()
        self._done.wait(_LAST_ATTEMPT_S)
        with self._lock:
            events = [*self._batch, *self._incoming]
        if self.target is not None and not events and spool is not None:
            spool.remove()
            return
        try:
            if spool is None:
                raise OSError
            spool.replace(None if self.target is None else self.target.run_id, events)
            spool.abandon()
        except OSError:
            self._report(
                f"{len(events):,} entries of the record are lost: the disk cannot be written"
            )
        else:
            self._report(
                f"{len(events):,} entries of the record wait in {spool.file}; the next llmctl that "
                "reaches the store delivers them"
            )

    def _report(self, text: str) -> None:
        with suppress(Exception):
            self._warn(f"tracking: {text}")
