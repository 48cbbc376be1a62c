"""Changes of stored runs: notes, tags, trash, restoration and permanent deletion.

Every change goes through MLflow's client and works for any store.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from llmctl.errors import LlmctlError
from llmctl.monitor.read.client import translated_store_errors
from llmctl.monitor.read.files import local_artifact_folder
from llmctl.monitor.store import TrackingStore, open_store, redact, store_uri
from llmctl.monitor.write.liveness import mark_dead_runs
from llmctl.types import RunRecord

_TRACES_AT_ONCE: Final = 100


@contextmanager
def open_writable_store(tracking_uri: str | None = None) -> Iterator[TrackingStore]:
    """Open the store for changes; its errors in the block become errors of llmctl.

    Runs of dead processes are marked as killed first, as readers see them already.

    Raises:
        ConfigError: the store rejects a value.
        LlmctlError: the store does not answer, or rejects the change.
    """
    uri = store_uri(tracking_uri)
    with translated_store_errors(uri):
        store = open_store(uri)
        mark_dead_runs(store.client, [store.experiment_id])
        yield store


def set_tag(store: TrackingStore, run_id: str, key: str, value: str) -> None:
    """Set a tag of a run; an empty value removes it."""
    if value:
        store.client.set_tag(run_id, key, value)
    elif key in store.client.get_run(run_id).data.tags:
        store.client.delete_tag(run_id, key)


def purge(
    store: TrackingStore, runs: Sequence[RunRecord], done: Callable[[RunRecord], None]
) -> None:
    """Delete runs permanently, with metrics, artifacts, traces and the record of their model.

    The folder of the model stays.

    Args:
        done: called after each deleted run.

    Raises:
        LlmctlError: the store is a server, which deletes permanently only on its own machine.
    """
    backend: Any = store.client._tracking_client.store
    if not hasattr(backend, "_hard_delete_run"):
        raise LlmctlError(
            f"the server {redact(store.uri)} does not delete permanently",
            hint="`mlflow gc` on its machine empties the trash; leave out --purge to use the trash",
        )
    for run in runs:
        _delete_traces(store, run.run_id)
        if run.model_id is not None:
            _delete_model(store, backend, run.model_id)
        if run.artifact_uri:
            _delete_files(run.artifact_uri)
        if not run.deleted:
            store.client.delete_run(run.run_id)
        backend._hard_delete_run(run.run_id)
        done(run)


def _delete_traces(store: TrackingStore, run_id: str) -> None:
    experiment = store.client.get_run(run_id).info.experiment_id
    while traces := store.client.search_traces(
        locations=[experiment], run_id=run_id, max_results=_TRACES_AT_ONCE, include_spans=False
    ):
        ids = [trace.info.trace_id for trace in traces]
        store.client.delete_traces(experiment, trace_ids=ids)


def _delete_model(store: TrackingStore, backend: Any, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.delete_logged_model(model_id)
        backend._hard_delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _delete_files(artifact_uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder = local_artifact_folder(artifact_uri)
    if folder is None or folder.exists():
        repository: Any = get_artifact_repository(artifact_uri)
        repository.delete_artifacts()
    if folder is not None:
        with suppress(OSError):  # MLflow leaves the empty parent folder of the run
            folder.parent.rmdir()
