"""A background thread that writes the events of a run in batches, and spools them in outages.

The caller only appends to a list. The thread writes the collected events, then pauses for 100 times
the duration of the write (between 1 s and 10 s), so that it takes about 1 % of a core. During
pauses and outages events go to the spool on the disk: a killed process loses only events of about
the last second.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from llmctl.errors import LlmctlError
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.events import Event, MetricEvent, TagEvent, TraceEvent
from llmctl.monitor.write.spool import Spool
from llmctl.types import TAG_HEARTBEAT

MAX_PENDING: Final = 200_000
"""Maximum number of events in memory, about 60 MB. Further metrics and traces are dropped."""
END_WAIT_S: Final = 30.0
"""Maximum time that `end` waits for a slow store."""
OUTAGE_WAIT_S: Final = 3.0
"""Maximum time that `end` waits for an unavailable store."""
_PAUSE_S: Final = (1.0, 10.0)
"""Shortest and longest pause between two writes."""
_OUTAGE_SPOOL_S: Final = 2.0
"""Interval of spooling during an outage."""
_PAUSE_SPOOL_S: Final = 0.5
"""Shortest interval of spooling during a pause; else 100 times the duration of the spooling."""
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
        """Events to write next. Only the thread changes it."""
        self._spooled = 0
        """Number of leading events of the batch that are in the spool."""
        self._dropped = 0
        self._warned = False
        self._pause_s, self._spool_s, self._retry_s = _PAUSE_S[0], _PAUSE_SPOOL_S, _RETRY_S[0]
        self._retry_at = self._heartbeat_at = 0.0
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
        if self._retry_at < math.inf:
            self._retry_at = 0.0
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
        if not self.is_unavailable:
            return END_WAIT_S
        return OUTAGE_WAIT_S if self._retry_at < math.inf else 0.0

    def _run(self) -> None:
        while True:
            self._step()
            self.attempted.set()
            if self._abandoned or (self._ending and not self._batch and not self._incoming):
                break
            self._wait()
        with self._spool_lock:
            if self._spool is not None:
                self._spool.remove()
        self._done.set()

    def _wait(self) -> None:
        if self.is_unavailable:
            self._flush.wait(_OUTAGE_SPOOL_S)
        elif self._wake.wait(_IDLE_HEARTBEAT_S):
            self._pause()
        self._wake.clear()
        self._flush.clear()

    def _pause(self) -> None:
        """Wait until the next write, and spool the events that arrive in the meantime."""
        deadline = time.monotonic() + self._pause_s
        while not self._flush.wait(min(self._spool_s, max(0.0, deadline - time.monotonic()))):
            began = time.monotonic()
            if began >= deadline:
                return
            self._collect()
            self._spool_batch()
            self._spool_s = max(100 * (time.monotonic() - began), _PAUSE_SPOOL_S)

    def _step(self) -> None:
        self._collect()
        if self.is_unavailable and time.monotonic() < self._retry_at:
            self._spool_batch()
            return
        is_first, count = self.target is None, len(self._batch)
        try:
            if self.target is None:
                self.target = self._connect(self.is_unavailable)
                self._spool_run_id(self.target.run_id)
            elif self.is_unavailable:
                self.target.mark_running()
            began = time.monotonic()
            self.target.deliver(self._batch)
        except Exception as error:  # no error of the store may stop the work
            self._spooled = max(0, self._spooled - (count - len(self._batch)))
            self._spool_batch()
            self._fail(error)
            return
        took_s = time.monotonic() - began
        self._pause_s = min(max(100 * took_s, _PAUSE_S[0]), _PAUSE_S[1])
        self._recover()
        if is_first:
            self.attempted.set()
            with suppress(Exception):
                self._on_connected(self.target)

    def _collect(self) -> None:
        """Move the incoming events to the batch, with a heartbeat if one is due."""
        now = time.monotonic()
        with self._lock:
            self._batch += self._incoming
            self._incoming = []
        if now - self._heartbeat_at >= (
            _BUSY_HEARTBEAT_S if self._batch else _IDLE_HEARTBEAT_S - 1
        ):
            self._heartbeat_at = now
            self._batch.append(TagEvent(TAG_HEARTBEAT, f"{time.time():.0f}"))
            with self._spool_lock:
                if self._spool is not None:
                    self._spool.touch()

    def _fail(self, error: Exception) -> None:
        self._retry_s = min(2 * self._retry_s, _RETRY_S[1]) if self.is_unavailable else _RETRY_S[0]
        self._retry_at = time.monotonic() + self._retry_s
        if isinstance(error, LlmctlError):  # the user must act first
            self._retry_at = math.inf
        self.is_unavailable = True
        if not self._warned:
            self._warned = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._report(
                f"the tracking store does not answer ({reason}); the work continues, and the "
                "record is kept on the disk until it does"
            )

    def _recover(self) -> None:
        self.is_unavailable, self._retry_s = False, _RETRY_S[0]
        with self._spool_lock, suppress(OSError):
            if self._spooled and self._spool is not None and self.target is not None:
                self._spool.replace(self.target.run_id, ())
        self._spooled = 0

    def _spool_run_id(self, run_id: str) -> None:
        with self._spool_lock, suppress(OSError):
            if self._spool is not None:
                self._spool.set_run_id(run_id)

    def _spool_batch(self) -> None:
        """Append the events of the batch that are not in the spool yet."""
        with self._spool_lock, suppress(OSError):
            if self._spool is not None and self._spooled < len(self._batch):
                self._spool.append(self._batch[self._spooled :])
        self._spooled = len(self._batch)

    def _abandon(self) -> None:
        """Spool all undelivered events for the next llmctl that opens the store."""
        self._abandoned = True
        with self._spool_lock:
            spool, self._spool = self._spool, None
        with self._lock:
            events = [*self._batch, *self._incoming]
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
