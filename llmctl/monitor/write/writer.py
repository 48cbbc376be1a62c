"""How rows get from the work to the store: in the background, in batches, and through outages.

One thread per run. The work only puts rows on a list. The thread writes what has gathered, then
rests a hundred times as long as that took (a second at least, ten at most), so that it never takes
more than about a hundredth of a core. While it rests, and while the store cannot be written and is
tried again and again, rows go to the spool on the disk: a process that is killed loses none that
are older than a second or so.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from llmctl.errors import LlmctlError
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.events import Point, Row, Tag, Traced
from llmctl.monitor.write.spool import Spool
from llmctl.types import TAG_HEARTBEAT

MAX_WAITING: Final = 200_000
"""Rows in memory at most, about 60 MB; then points of curves and traces are dropped and counted."""
END_WAIT_S: Final = 30.0
"""How long the end of a run waits for a store that answers slowly,"""
OUTAGE_WAIT_S: Final = 3.0
"""and for one that does not answer."""
_REST_S: Final = (1.0, 10.0)
_SPOOL_S: Final = 2.0
"""While the store is away rows reach the disk within this time,"""
_REST_SPOOL_S: Final = 0.5
"""and while the thread rests within this, or a hundred times as long as that takes."""
_RETRY_S: Final = (1.0, 30.0)
"""First and longest pause between two tries."""
_SEEN_S: Final = 10.0
"""How often a busy run says that it lives,"""
_SIGN_S: Final = 60.0
"""and an idle one."""


class EventWriter:
    """Takes rows from any thread, and never makes it wait."""

    def __init__(
        self,
        connect: Callable[[bool], Delivery],
        connected: Callable[[Delivery], None],
        spool: Spool | None,
        warn: Callable[[str], None],
    ) -> None:
        """Prepare to write; `start` begins, in a thread of its own.

        Args:
            connect: opens the store and makes the run; tried again until it returns, and told
                whether there was a try before.
            connected: called once after the first rows have arrived, from the same thread; what it
                raises is ignored.
            spool: None where the disk cannot be written.
            warn: told once when the store goes away, and what became of the rest at the end.
        """
        self.tried = threading.Event()
        """Set when the store has answered, or has failed to, for the first time."""
        self.target: Delivery | None = None
        self._connect = connect
        self._connected = connected
        self._spool = spool
        self._warn = warn
        self._lock, self._disk = threading.Lock(), threading.Lock()
        self._gathered: list[Row] = []
        self._taken: list[Row] = []
        """What the thread is about to write. Only the thread changes it."""
        self._spooled = 0
        """So many of the taken rows are on the disk, from the first on."""
        self._dropped = 0
        self.away = False
        """Whether the last try failed."""
        self._warned = False
        self._rest_s, self._keep_s, self._retry_s = _REST_S[0], _REST_SPOOL_S, _RETRY_S[0]
        self._retry_at = self._seen_at = 0.0
        self._wake, self._hurry, self._done = (threading.Event() for _ in range(3))
        self._ending = self._left = False
        self._thread = threading.Thread(target=self._run, name="llmctl-tracking", daemon=True)

    def start(self) -> None:
        """Begin to write. What was put before is in the store as soon as the run is."""
        self._thread.start()

    def put(self, rows: Sequence[Row]) -> None:
        """Take rows to write."""
        with self._lock:
            if len(self._gathered) + len(self._taken) >= MAX_WAITING:
                kept = [row for row in rows if not isinstance(row, Point | Traced)]
                self._dropped += len(rows) - len(kept)
                rows = kept
            self._gathered.extend(rows)
        if not self._wake.is_set():
            self._wake.set()

    def hurry(self) -> None:
        """Write what has gathered now, without the rest before it."""
        self._hurry.set()
        self._wake.set()

    def end(self) -> None:
        """Write what is left and stop. What the store does not take in time stays on the disk."""
        self._ending = True
        if self._retry_at < math.inf:
            self._retry_at = 0.0
        self.hurry()
        began = time.monotonic()
        try:
            while not self._done.wait(0.05) and time.monotonic() - began < self._patience_s():
                pass
        finally:  # a second Ctrl-C ends the wait, not the record
            if not self._done.is_set():
                self._leave()
        if self._dropped:
            self._tell(f"{self._dropped:,} points and traces were dropped: too many waited")

    def _patience_s(self) -> float:
        if not self.away:
            return END_WAIT_S
        return OUTAGE_WAIT_S if self._retry_at < math.inf else 0.0

    def _run(self) -> None:
        while True:
            self._step()
            self.tried.set()
            if self._left or (self._ending and not self._taken and not self._gathered):
                break
            self._pause()
        with self._disk:
            if self._spool is not None:
                self._spool.remove()
        self._done.set()

    def _pause(self) -> None:
        if self.away:
            self._hurry.wait(_SPOOL_S)
        elif self._wake.wait(_SIGN_S):
            self._rest()
        self._wake.clear()
        self._hurry.clear()

    def _rest(self) -> None:
        """Wait for the next write, and put on the disk what gathers meanwhile."""
        last = time.monotonic() + self._rest_s
        while not self._hurry.wait(min(self._keep_s, max(0.0, last - time.monotonic()))):
            began = time.monotonic()
            if began >= last:
                return
            self._take()
            self._keep()
            self._keep_s = max(100 * (time.monotonic() - began), _REST_SPOOL_S)

    def _step(self) -> None:
        self._take()
        if self.away and time.monotonic() < self._retry_at:
            self._keep()
            return
        first, count = self.target is None, len(self._taken)
        try:
            if self.target is None:
                self.target = self._connect(self.away)
                self._note_run(self.target.run_id)
            elif self.away:
                self.target.taken_up_again()
            began = time.monotonic()
            self.target.deliver(self._taken)
        except Exception as error:  # whatever it is, the work goes on
            self._spooled = max(0, self._spooled - (count - len(self._taken)))
            self._keep()
            self._fail(error)
            return
        took_s = time.monotonic() - began
        self._rest_s = min(max(100 * took_s, _REST_S[0]), _REST_S[1])
        self._recover()
        if first:
            self.tried.set()
            with suppress(Exception):
                self._connected(self.target)

    def _take(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._taken += self._gathered
            self._gathered = []
        if now - self._seen_at >= (_SEEN_S if self._taken else _SIGN_S - 1):
            self._seen_at = now
            self._taken.append(Tag(TAG_HEARTBEAT, f"{time.time():.0f}"))
            with self._disk:
                if self._spool is not None:
                    self._spool.touch()

    def _fail(self, error: Exception) -> None:
        self._retry_s = min(2 * self._retry_s, _RETRY_S[1]) if self.away else _RETRY_S[0]
        self._retry_at = time.monotonic() + self._retry_s
        if isinstance(error, LlmctlError):  # a store that a person must look at first
            self._retry_at = math.inf
        self.away = True
        if not self._warned:
            self._warned = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._tell(
                f"the tracking store does not answer ({reason}); the work goes on, and the record "
                "waits until it does"
            )

    def _recover(self) -> None:
        self.away, self._retry_s = False, _RETRY_S[0]
        with self._disk, suppress(OSError):
            if self._spooled and self._spool is not None and self.target is not None:
                self._spool.replace(self.target.run_id, ())
        self._spooled = 0

    def _note_run(self, run_id: str) -> None:
        with self._disk, suppress(OSError):
            if self._spool is not None:
                self._spool.know_run(run_id)

    def _keep(self) -> None:
        """Put what is taken on the disk too."""
        with self._disk, suppress(OSError):
            if self._spool is not None and self._spooled < len(self._taken):
                self._spool.append(self._taken[self._spooled :])
        self._spooled = len(self._taken)

    def _leave(self) -> None:
        """Put all that is left on the disk, for whoever opens the store next."""
        self._left = True
        with self._disk:
            spool, self._spool = self._spool, None
        with self._lock:
            rows = [*self._taken, *self._gathered]
        try:
            if spool is None:
                raise OSError
            spool.replace(None if self.target is None else self.target.run_id, rows)
            spool.abandon()
        except OSError:
            self._tell(f"{len(rows):,} entries of the record are lost: the disk cannot be written")
        else:
            self._tell(
                f"{len(rows):,} entries of the record wait in {spool.file}; the next llmctl that "
                "reaches the store delivers them"
            )

    def _tell(self, text: str) -> None:
        with suppress(Exception):
            self._warn(f"tracking: {text}")
