"""Delivery of events to the tracking store, and the errors that are final."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmctl.atomic_files import write_atomically
from llmctl.monitor.store import TrackingStore, redact
from llmctl.monitor.write.events import (
    DatasetEvent,
    Event,
    FileEvent,
    IdFileEvent,
    MetricEvent,
    ModelInputEvent,
    ModelOutputEvent,
    ParamEvent,
    StatusEvent,
    TagEvent,
    TraceEvent,
    describe,
    encode,
)
from llmctl.monitor.write.liveness import DIED_ERROR, process_identity
from llmctl.monitor.write.sanitize import TAG_CHARS, sanitize_key, truncate, valid_text
from llmctl.monitor.write.traces import build_trace
from llmctl.types import (
    TAG_ADAPTER,
    TAG_CHANGED_PREFIX,
    TAG_ERROR,
    TAG_MODEL_ID,
    TAG_PROCESS,
    TAG_USED_MODEL_ID,
    DatasetRef,
    RunStatus,
)

if TYPE_CHECKING:
    from mlflow.entities import Dataset

_MAX_BATCH: Final = {MetricEvent: 1000, ParamEvent: 100, TagEvent: 100, TraceEvent: 50}
"""Maximum number of events per call: MLflow's limits, and for traces a limit of its duration."""
_MAX_BATCH_CHARS: Final = 500_000
"""Half of the limit of a request to a server."""
_STATUS: Final[Mapping[RunStatus, str]] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "killed": "KILLED",
}
_FINAL: Final = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
)
_TAG_PROBE: Final = "llmctl.probe"
"""Tag that is set and deleted to learn whether the store accepts anything."""
_MAX_REFUSALS: Final = 3
"""Number of times that a store may refuse an event while it accepts others."""
_DIGEST_CHARS: Final = 36
"""MLflow's limit. The profile of the dataset holds the whole digest."""
_TAG_EVENT: Final = "llmctl.made"
"""Tag of a LoggedModel: the key of its event, so that repeated delivery creates no second model."""


class Delivery:
    """Writes the events of one run to the store. Delivery is idempotent."""

    def __init__(
        self,
        store: TrackingStore,
        run_id: str,
        on_rejected: Callable[[str], None],
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Deliver to an existing run.

        Args:
            on_rejected: called with a line for each event that the store rejects for good.
            params: parameters that the run has already.
        """
        self.store = store
        self.run_id = run_id
        self.model_ids: dict[str, str] = {}
        """Ids of LoggedModels by the keys of their events."""
        self._on_rejected = on_rejected
        self._params = dict(params or {})
        self.is_refusing = False
        """Whether the last delivery left events that the store refused."""
        self._refusals: dict[str, int] = {}
        """Number of refusals of each event, by its encoded form."""

    def deliver(self, events: list[Event]) -> None:
        """Write events, and remove from the list those that were written or rejected for good.

        An event that the store refuses while it accepts others stays in the list, and does not
        hold up the others. It is rejected the third time, unless the connection or the disk failed.

        Raises:
            Exception: the store cannot be reached or written now; the rest stays in the list.
        """
        refused: list[Event] = []
        try:
            while events:
                count = _batch_size(events)
                refused += self._send(events[:count])
                del events[:count]
        finally:
            events[:0] = refused
            self.is_refusing = bool(refused)

    def mark_running(self) -> None:
        """Mark the run as RUNNING if another process marked it as dead during an outage."""
        client = self.store.client
        run = client.get_run(self.run_id)
        if run.info.status == "RUNNING" or run.data.tags.get(TAG_PROCESS) != process_identity():
            return
        client.update_run(self.run_id, "RUNNING")
        if run.data.tags.get(TAG_ERROR) == DIED_ERROR:
            client.delete_tag(self.run_id, TAG_ERROR)

    def _send(self, events: list[Event]) -> list[Event]:
        """Write events; return those that the store refused, but may accept later."""
        first = events[0]
        try:
            self._write(events)
            return []
        except Exception as error:
            final = _is_final(error, first)
            if not final:  # raises if the store accepts nothing at all
                self.store.client.set_tag(self.run_id, _TAG_PROBE, "")
                self.store.client.delete_tag(self.run_id, _TAG_PROBE)
            if len(events) > 1:  # isolate the rejected event and deliver the others
                half = len(events) // 2
                return self._send(events[:half]) + self._send(events[half:])
            if not final and not self._is_refused_for_good(error, first):
                return events
            self._on_rejected(redact(f"{describe(first)} was rejected: {error}"))
        if isinstance(first, MetricEvent) and first.model_id is not None:
            return self._send([replace(first, model_id=None)])
        return []

    def _is_refused_for_good(self, error: Exception, event: Event) -> bool:
        """Count the refusal of an event. Failures of connections and disks do not count."""
        from requests.exceptions import ConnectionError, Timeout

        if isinstance(error, OSError) or isinstance(error.__context__, ConnectionError | Timeout):
            return False
        key = encode(event)
        self._refusals[key] = self._refusals.get(key, 0) + 1
        return self._refusals[key] >= _MAX_REFUSALS

    def _write(self, events: list[Event]) -> None:
        match events[0]:
            case TraceEvent():
                self._write_traces(events)
            case FileEvent() as event:
                self._write_file(event)
            case DatasetEvent() as event:
                self._write_dataset(event)
            case ModelOutputEvent() as event:
                self._write_model(event)
            case ModelInputEvent() as event:
                self._write_used(event)
            case IdFileEvent() as event:
                self._complete_ids(Path(event.path))
            case StatusEvent(status="running"):
                self.store.client.update_run(self.run_id, _STATUS["running"])
            case StatusEvent() as event:
                self.store.client.set_terminated(self.run_id, _STATUS[event.status], event.time_ms)
            case _:
                self._write_batch(events)

    def _write_batch(self, events: list[Event]) -> None:
        from mlflow.entities import Metric, RunTag
        from mlflow.entities import Param as RunParam

        points = [event for event in events if isinstance(event, MetricEvent)]
        tags = {event.key: event.value for event in events if isinstance(event, TagEvent)}
        params: dict[str, str] = {}
        for event in events:
            if not isinstance(event, ParamEvent):
                continue
            known = self._params.get(event.key, params.get(event.key))
            if known is None:
                params[event.key] = event.value
            elif known != event.value:  # parameters are immutable: the new value becomes a tag
                name = sanitize_key(TAG_CHANGED_PREFIX + event.key)
                tags[name] = truncate(event.value, TAG_CHARS)
        self.store.client.log_batch(
            self.run_id,
            [Metric(p.key, p.value, p.time_ms, p.step, p.model_id) for p in points],
            [RunParam(name, value) for name, value in params.items()],
            [RunTag(name, value) for name, value in tags.items()],
        )
        self._params |= params

    def _write_file(self, event: FileEvent) -> None:
        path = Path(event.path)
        if path.is_dir():
            folder = f"{event.folder}/{path.name}".strip("/")
            self.store.client.log_artifacts(self.run_id, str(path), folder)
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():  # otherwise it was delivered before
            self.store.client.log_artifact(self.run_id, str(path), event.folder or None)
            path.unlink(missing_ok=True)

    def _write_dataset(self, event: DatasetEvent) -> None:
        from mlflow.entities import DatasetInput, InputTag

        context = [InputTag("mlflow.data.context", event.context)]
        dataset = _dataset(self._unique_per_context(event))
        self.store.client.log_inputs(self.run_id, [DatasetInput(dataset, context)])

    def _unique_per_context(self, event: DatasetEvent) -> DatasetRef:
        """Return the dataset with the context in its name if the run uses it in another context.

        MLflow merges inputs with the same name and digest, and keeps only the first context.
        """
        ref, inputs = event.dataset, self.store.client.get_run(self.run_id).inputs
        for used in inputs.dataset_inputs if inputs is not None else ():
            same = (used.dataset.name, used.dataset.digest) == (
                valid_text(ref.name),
                ref.digest[:_DIGEST_CHARS],
            )
            if same and all(tag.value != event.context for tag in used.tags):
                return replace(ref, name=f"{ref.name} ({event.context})")
        return ref

    def _write_model(self, event: ModelOutputEvent) -> None:
        from mlflow.entities import LoggedModelOutput

        client = self.store.client
        model_id = self._created_model(event) or self._create_model(event)
        client.set_tag(self.run_id, TAG_MODEL_ID, model_id)
        client.set_tag(self.run_id, TAG_ADAPTER, event.folder)
        outputs = client.get_run(self.run_id).outputs
        if outputs is None or all(model.model_id != model_id for model in outputs.model_outputs):
            client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step=0)])
        self.model_ids[event.key] = model_id

    def _created_model(self, event: ModelOutputEvent) -> str | None:
        models = self.store.client.search_logged_models(
            [self.store.experiment_id], f"source_run_id = '{self.run_id}'"
        )
        return next((m.model_id for m in models if m.tags.get(_TAG_EVENT) == event.key), None)

    def _create_model(self, event: ModelOutputEvent) -> str:
        """Create an external model as `mlflow.create_external_model` does, without global state."""
        from mlflow.entities import LoggedModelStatus

        model = self.store.client.create_logged_model(
            self.store.experiment_id,
            name=event.name,
            source_run_id=self.run_id,
            tags=event.tags
            | {TAG_ADAPTER: event.folder, _TAG_EVENT: event.key, "mlflow.model.isExternal": "true"},
        )
        self.store.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def _write_used(self, event: ModelInputEvent) -> None:
        from mlflow.entities import LoggedModelInput

        self.store.client.set_tag(self.run_id, TAG_USED_MODEL_ID, event.model_id)
        self.store.client.log_inputs(self.run_id, models=[LoggedModelInput(event.model_id)])

    def _complete_ids(self, file: Path) -> None:
        if not file.exists():  # deleted or moved by the user
            return
        values = json.loads(file.read_text(encoding="utf-8"))
        tags = self.store.client.get_run(self.run_id).data.tags
        known = {"run_id": self.run_id, "model_id": tags.get(TAG_MODEL_ID)}
        values.setdefault("run_id", None)
        missing = {name: known[name] for name in known if values.get(name, "") is None}
        if missing and values.get("run_id") in (None, self.run_id):
            text = json.dumps(values | missing, indent=2, ensure_ascii=False) + "\n"
            write_atomically(file, text)

    def _write_traces(self, events: list[Event]) -> None:
        # Tracing through the client uses global state and a queue that drops failed spans.
        from mlflow.tracing.client import TracingClient

        client = TracingClient(self.store.uri)
        spans = []
        for event in events:
            assert isinstance(event, TraceEvent)
            info, span = build_trace(event, self.store.experiment_id, self.run_id)
            client.start_trace(info)
            spans.append(span)
        client.log_spans(self.store.experiment_id, spans)


def _batch_size(events: list[Event]) -> int:
    """Return the number of leading events for one call, at least 1."""
    kinds = (
        (TraceEvent,) if isinstance(events[0], TraceEvent) else (MetricEvent, ParamEvent, TagEvent)
    )
    left, chars = dict(_MAX_BATCH), 0
    for count, event in enumerate(events):
        chars += 150 + (len(event.value) if isinstance(event, ParamEvent | TagEvent) else 0)
        if not isinstance(event, kinds) or not left[type(event)] or chars > _MAX_BATCH_CHARS:
            return max(1, count)
        left[type(event)] -= 1
    return len(events)


def _is_final(error: Exception, event: Event) -> bool:
    """Whether repeating the call can never succeed."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

    if isinstance(error, MlflowException):
        cause = error.__cause__
        if isinstance(cause, SQLAlchemyError):  # otherwise a full disk or a damaged file
            return isinstance(cause, DataError | IntegrityError)
        if error.error_code == "ENDPOINT_NOT_FOUND":  # also the page of a proxy during a restart
            return isinstance(event, TraceEvent)
        return error.error_code in _FINAL
    if isinstance(event, IdFileEvent):
        return isinstance(error, OSError | ValueError | AttributeError)
    if isinstance(event, FileEvent):
        return isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError)
    return isinstance(error, TypeError | ValueError)


def _dataset(ref: DatasetRef) -> "Dataset":
    from mlflow.entities import Dataset as RunDataset

    local = Path(ref.source).is_absolute()
    profile = {"num_rows": ref.rows, "format": ref.format, "digest": ref.digest}
    return RunDataset(
        name=valid_text(ref.name),
        digest=ref.digest[:_DIGEST_CHARS],
        source_type="local" if local else "hugging_face",
        source=json.dumps({"uri" if local else "path": valid_text(ref.source)}),
        profile=json.dumps(profile),
    )
