"""How a run comes to be in the store, or is taken up again."""

import getpass
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.delivery import Delivery
from llmctl.monitor.write.liveness import process_identity
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
    """Return a name a person can say and no other run has: kind, model, and six random digits.

    They come from the operating system, so that a seed set for training repeats no name.
    """
    model = start.model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].split("@")[0]
    return "-".join(part for part in (start.kind, model, secrets.token_hex(3)) if part)


def start_run(
    store: TrackingStore,
    start: RunStart,
    name: str,
    started_ms: int,
    refused: Callable[[str], None],
    *,
    process: str | None = None,
    again: bool = False,
) -> Delivery:
    """Make the run, or take up the one to go on with; it is RUNNING then.

    Args:
        name: used for a new run.
        started_ms: Unix milliseconds, for a new run.
        refused: told in a line what could not be done as it was asked.
        process: who writes the run, as `liveness.this_process` says it; this one if not given.
        again: look first whether an earlier try made the run, whose answer did not come.

    Raises:
        mlflow.exceptions.MlflowException: the store cannot be reached or written.
    """
    if start.resume_run_id is not None:
        resumed = _resume(store, start.resume_run_id, refused)
        if resumed is not None:
            return resumed
        refused(f"there is no run {start.resume_run_id} to go on with, so this is a new one")
    made = _made_before(store, name, started_ms) if again else None
    if made is not None:
        return Delivery(store, made.info.run_id, refused, made.data.params)
    tags = {
        TAG_PROCESS: process or process_identity(),
        TAG_HEARTBEAT: f"{time.time() if process is None else started_ms / 1000:.0f}",
        TAG_KIND: start.kind,
        TAG_MODEL: start.model,
        TAG_PARENT: start.parent_run_id or "",
        "mlflow.user": _user(),
        "mlflow.source.name": f"llmctl {start.kind}",
        "mlflow.source.type": "LOCAL",
    }
    tags = {name: value for name, value in tags.items() if value}
    run = store.client.create_run(store.experiment_id, started_ms, tags, name)
    return Delivery(store, run.info.run_id, refused)


def _made_before(store: TrackingStore, name: str, started_ms: int) -> "Run | None":
    runs = store.client.search_runs(
        [store.experiment_id], f"attributes.start_time = {started_ms}", max_results=100
    )
    return next((run for run in runs if run.info.run_name == name), None)


def _resume(store: TrackingStore, run_id: str, refused: Callable[[str], None]) -> Delivery | None:
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    if run.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    # Ours before it runs: whoever looks for dead runs must not find the old process.
    client.set_tag(run_id, TAG_HEARTBEAT, f"{time.time():.0f}")
    client.set_tag(run_id, TAG_PROCESS, process_identity())
    client.update_run(run_id, "RUNNING")
    if TAG_ERROR in run.data.tags:
        client.delete_tag(run_id, TAG_ERROR)
    return Delivery(store, run_id, refused, run.data.params)


def _user() -> str:
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return ""
