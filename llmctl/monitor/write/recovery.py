"""Delivery of events that a dead process left in its spool."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.events import StatusEvent, TagEvent
from llmctl.monitor.write.liveness import is_alive, last_seen
from llmctl.monitor.write.spool import Spool, SpoolContents, orphaned_spools, spool_folder
from llmctl.monitor.write.start import find_stored_run, start_run
from llmctl.types import TAG_HEARTBEAT, TAG_PROCESS

if TYPE_CHECKING:
    from mlflow.entities import Run

_ATTEMPTS = 3
"""Number of deliveries, after which an event that the store always refuses is rejected."""


def deliver_orphaned_spools(store: TrackingStore, on_rejected: Callable[[str], None]) -> int:
    """Deliver the spools of dead processes to this store; return the number of their events.

    A lock keeps two processes from delivering at the same time: the second one returns at once.

    Args:
        on_rejected: called with a line for each event that the store rejects for good.

    Raises:
        mlflow.exceptions.MlflowException: the store became unavailable; the rest stays spooled.
    """
    from filelock import FileLock, Timeout

    count = 0
    if orphaned_spools(store.uri):
        with suppress(Timeout), FileLock(spool_folder() / ".lock", timeout=0):
            for spool in orphaned_spools(store.uri):
                with suppress(ValueError):  # a damaged spool; the others are delivered
                    count += _deliver(store, spool, on_rejected)
    return count


def _deliver(store: TrackingStore, spool: Spool, on_rejected: Callable[[str], None]) -> int:
    contents, changed = spool.read(), spool.file.stat().st_mtime
    events = list(contents.events)
    if events:  # the writer was alive when it last wrote the file
        events.append(TagEvent(TAG_HEARTBEAT, f"{changed:.0f}"))
    run_id = contents.run_id or contents.start.resume_run_id
    if run_id is None:
        delivery = start_run(
            store,
            contents.start,
            contents.name,
            contents.started_ms,
            on_rejected,
            process=contents.process,
            is_retry=True,
        )
        run_id = delivery.run_id
        spool.set_run_id(run_id)
    elif (run := find_stored_run(store, run_id)) is None:
        on_rejected(f"run {run_id} is not in the store any more; its events are dropped")
        events = []
    else:
        if not _is_current(run, contents):
            events = [e for e in events if not isinstance(e, StatusEvent | TagEvent)]
        delivery = Delivery(store, run_id, on_rejected, run.data.params)
    for _ in range(_ATTEMPTS):
        if events:
            delivery.deliver(events)
    if events:
        spool.replace(run_id, events)
    else:
        spool.remove()
    return len(contents.events) - len(events)


def _is_current(run: "Run", contents: SpoolContents) -> bool:
    """Whether status and tags in the spool are newer than the run in the store."""
    owner = run.data.tags.get(TAG_PROCESS, "")
    if owner == contents.process:
        return True
    if is_alive(owner, last_seen(run.data.tags)):
        return False
    ended_ms = run.info.end_time or 0
    return any(e.time_ms > ended_ms for e in contents.events if isinstance(e, StatusEvent))
