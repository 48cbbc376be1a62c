"""How rows that a process could not deliver before it ended reach the store after all."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.events import Status, Tag
from llmctl.monitor.write.liveness import is_alive, last_seen
from llmctl.monitor.write.spool import Spool, SpoolContents, orphaned_spools, spool_folder
from llmctl.monitor.write.start import start_run
from llmctl.types import TAG_HEARTBEAT, TAG_PROCESS

if TYPE_CHECKING:
    from mlflow.entities import Run


def deliver_orphaned_spools(store: TrackingStore, refused: Callable[[str], None]) -> int:
    """Deliver what ended processes left waiting for this store; return how many rows that were.

    Two processes never deliver at the same time: the second finds it is being done, and leaves.

    Raises:
        mlflow.exceptions.MlflowException: the store went away; what was not delivered still waits.
    """
    from filelock import FileLock, Timeout

    count = 0
    if orphaned_spools(store.uri):
        with suppress(Timeout), FileLock(spool_folder() / ".lock", timeout=0):
            for spool in orphaned_spools(store.uri):
                with suppress(ValueError):  # damaged: the others are not
                    count += _deliver(store, spool, refused)
    return count


def _deliver(store: TrackingStore, spool: Spool, refused: Callable[[str], None]) -> int:
    from mlflow.exceptions import MlflowException

    waiting, written = spool.read(), spool.file.stat().st_mtime
    rows = list(waiting.rows)
    if rows:  # the writer lived as long as it wrote
        rows.append(Tag(TAG_HEARTBEAT, f"{written:.0f}"))
    run_id = waiting.run_id or waiting.start.resume_run_id
    if run_id is None:
        delivery = start_run(
            store,
            waiting.start,
            waiting.name,
            waiting.started_ms,
            refused,
            process=waiting.process,
            again=True,
        )
        spool.know_run(delivery.run_id)
        delivery.deliver(rows)
    elif rows:
        try:
            run = store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            refused(f"run {run_id} is not in the store any more, so what waited for it is dropped")
        else:
            if not _speaks_for(run, waiting):
                rows = [row for row in rows if not isinstance(row, Status | Tag)]
            Delivery(store, run_id, refused, run.data.params).deliver(rows)
    spool.remove()
    return len(waiting.rows)


def _speaks_for(run: "Run", waiting: SpoolContents) -> bool:
    """Whether what waited is the run's latest word: nobody has taken the run up again since."""
    owner = run.data.tags.get(TAG_PROCESS, "")
    if owner == waiting.process:
        return True
    if is_alive(owner, last_seen(run.data.tags)):
        return False
    ended_ms = run.info.end_time or 0
    return any(row.time_ms > ended_ms for row in waiting.rows if isinstance(row, Status))
