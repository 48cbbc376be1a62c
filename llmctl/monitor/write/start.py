"""Creation of a run in the store, and resumption of an earlier one."""

import getpass
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.liveness import process_identity
from llmctl.monitor.write.sanitize import valid_text
from llmctl.types import (
    TAG_ERROR,
    TAG_HEARTBEAT,
    TAG_KIND,
    TAG_MODEL,
    TAG_PARENT,
    TAG_PROCESS,
    RunStart,
)

if TYPE_CHECKING:
    from mlflow.entities import Run


def generate_run_name(start: RunStart) -> str:
    """Return a readable, unique name: kind, model, and six random hexadecimal digits.

    The digits come from the operating system, so that a seed for training does not repeat names.
    """
    model = start.model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].split("@")[0]
    return "-".join(part for part in (start.kind, model, secrets.token_hex(3)) if part)


def start_run(
    store: TrackingStore,
    start: RunStart,
    name: str,
    started_ms: int,
    on_rejected: Callable[[str], None],
    *,
    process: str | None = None,
    is_retry: bool = False,
) -> Delivery:
    """Create the run, or resume `start.resume_run_id`. Its status is RUNNING then.

    Args:
        name: of a new run.
        started_ms: start of a new run in Unix milliseconds.
        on_rejected: called with a line for everything that the store rejects.
        process: identity of the process that writes the run; None takes this one.
        is_retry: search first for a run created by an earlier call whose answer was lost.

    Raises:
        mlflow.exceptions.MlflowException: the store cannot be reached or written.
    """
    if start.resume_run_id is not None:
        resumed = _resume(store, start.resume_run_id, on_rejected)
        if resumed is not None:
            return resumed
        on_rejected(f"run {start.resume_run_id} does not exist; this is a new run")
    if is_retry:
        at = f"attributes.start_time = {started_ms}"
        for run in store.client.search_runs([store.experiment_id], at, max_results=100):
            if run.info.run_name == valid_text(name):
                return Delivery(store, run.info.run_id, on_rejected, run.data.params)
    user = ""
    with suppress(OSError, KeyError, ImportError):
        user = getpass.getuser()
    tags = {
        TAG_PROCESS: process or process_identity(),
        TAG_HEARTBEAT: f"{time.time() if process is None else started_ms / 1000:.0f}",
        TAG_KIND: start.kind,
        TAG_MODEL: start.model,
        TAG_PARENT: start.parent_run_id or "",
        "mlflow.user": user,
        "mlflow.source.name": f"llmctl {start.kind}",
        "mlflow.source.type": "LOCAL",
    }
    tags = {name: valid_text(value) for name, value in tags.items() if value}
    run = store.client.create_run(store.experiment_id, started_ms, tags, valid_text(name))
    return Delivery(store, run.info.run_id, on_rejected)


def find_stored_run(store: TrackingStore, run_id: str) -> "Run | None":
    """Return a run, which may be in the trash; None if the store does not hold it."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _resume(
    store: TrackingStore, run_id: str, on_rejected: Callable[[str], None]
) -> Delivery | None:
    client, run = store.client, find_stored_run(store, run_id)
    if run is None:
        return None
    if run.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    # The new process first: another llmctl must not find a RUNNING run of the dead process.
    client.set_tag(run_id, TAG_HEARTBEAT, f"{time.time():.0f}")
    client.set_tag(run_id, TAG_PROCESS, process_identity())
    client.update_run(run_id, "RUNNING")
    if TAG_ERROR in run.data.tags:
        client.delete_tag(run_id, TAG_ERROR)
    return Delivery(store, run_id, on_rejected, run.data.params)
