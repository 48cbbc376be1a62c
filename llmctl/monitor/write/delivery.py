"""How rows become calls of the store, and which refusals are final."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmctl.monitor.store import TrackingStore
from llmctl.monitor.write.events import (
    Data,
    File,
    Made,
    Param,
    Point,
    Row,
    Status,
    Tag,
    Traced,
    Used,
)
from llmctl.monitor.write.liveness import DIED_ERROR, process_identity
from llmctl.monitor.write.sanitize import TAG_CHARS, sanitize_key, truncate
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

_TOGETHER: Final = {Point: 1000, Param: 100, Tag: 100, Traced: 50}
"""How many of each one call may hold: MLflow's limits, and for traces a bound on the wait."""
_TOGETHER_CHARS: Final = 500_000
"""Half of what a server takes in one request."""
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
_NAMES: Final[Mapping[type[Row], str]] = {
    Point: "a metric",
    Param: "a parameter",
    Tag: "a tag",
    File: "a file",
    Data: "a dataset",
    Made: "the model that was made",
    Used: "the model that was used",
    Traced: "a trace",
    Status: "the status",
}
_DIGEST_CHARS: Final = 36
"""MLflow's limit. The whole digest is in the dataset's profile."""
_TAG_MADE: Final = "llmctl.made"
"""On a LoggedModel: the key of the row that made it, so that no row makes two."""


class Delivery:
    """Writes rows of one run. To write a row twice does no harm."""

    def __init__(
        self,
        store: TrackingStore,
        run_id: str,
        refused: Callable[[str], None],
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Write to a run that is there.

        Args:
            refused: told of each row that the store will never take.
            params: what the run has already.
        """
        self.store = store
        self.run_id = run_id
        self.model_ids: dict[str, str] = {}
        """LoggedModels, by the key of the row that made them."""
        self._refused = refused
        self._params = dict(params or {})

    def deliver(self, rows: list[Row]) -> None:
        """Write rows, and take each off the list when it has arrived or was refused for good.

        Raises:
            Exception: the store cannot be reached or written now; what is left is still listed.
        """
        while rows:
            count = _together(rows)
            self._send(rows[:count])
            del rows[:count]

    def taken_up_again(self) -> None:
        """Say that the run goes on, after a time in which others may have thought it dead."""
        client = self.store.client
        run = client.get_run(self.run_id)
        if run.info.status == "RUNNING" or run.data.tags.get(TAG_PROCESS) != process_identity():
            return
        client.update_run(self.run_id, "RUNNING")
        if run.data.tags.get(TAG_ERROR) == DIED_ERROR:
            client.delete_tag(self.run_id, TAG_ERROR)

    def _send(self, rows: list[Row]) -> None:
        try:
            self._write(rows)
        except Exception as error:
            if not _is_final(error, rows[0]):
                raise
            if len(rows) > 1:  # find the one at fault; the others may arrive
                half = len(rows) // 2
                self._send(rows[:half])
                self._send(rows[half:])
                return
            self._refused(f"{_NAMES[type(rows[0])]} was refused: {error}")
            if isinstance(rows[0], Point) and rows[0].model_id is not None:
                self._send([replace(rows[0], model_id=None)])

    def _write(self, rows: list[Row]) -> None:
        match rows[0]:
            case Traced():
                self._write_traces(rows)
            case File() as row:
                self._write_file(row)
            case Data() as row:
                self._write_dataset(row)
            case Made() as row:
                self._write_model(row)
            case Used() as row:
                self._write_used(row)
            case Status(status="running"):
                self.store.client.update_run(self.run_id, _STATUS["running"])
            case Status() as row:
                self.store.client.set_terminated(self.run_id, _STATUS[row.status], row.time_ms)
            case _:
                self._write_batch(rows)

    def _write_batch(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric, RunTag
        from mlflow.entities import Param as RunParam

        points = [row for row in rows if isinstance(row, Point)]
        tags = {row.key: row.value for row in rows if isinstance(row, Tag)}
        params: dict[str, str] = {}
        for row in rows:
            if not isinstance(row, Param):
                continue
            known = self._params.get(row.key, params.get(row.key))
            if known is None:
                params[row.key] = row.value
            elif known != row.value:  # a parameter never changes, so what is new stands beside it
                tags[sanitize_key(TAG_CHANGED_PREFIX + row.key)] = truncate(row.value, TAG_CHARS)
        self.store.client.log_batch(
            self.run_id,
            [Metric(p.key, p.value, p.time_ms, p.step, p.model_id) for p in points],
            [RunParam(name, value) for name, value in params.items()],
            [RunTag(name, value) for name, value in tags.items()],
        )
        self._params |= params

    def _write_file(self, row: File) -> None:
        path = Path(row.path)
        if path.is_dir():
            folder = f"{row.folder}/{path.name}".strip("/")
            self.store.client.log_artifacts(self.run_id, str(path), folder)
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():  # else it has arrived before
            self.store.client.log_artifact(self.run_id, str(path), row.folder or None)
            path.unlink(missing_ok=True)

    def _write_dataset(self, row: Data) -> None:
        from mlflow.entities import DatasetInput, InputTag

        context = [InputTag("mlflow.data.context", row.context)]
        dataset = _dataset(self._apart(row))
        self.store.client.log_inputs(self.run_id, [DatasetInput(dataset, context)])

    def _apart(self, row: Data) -> DatasetRef:
        """Return the dataset under a name that the run does not use for it in another role.

        MLflow takes the same name and digest for one input, and keeps only the first role of it.
        """
        ref, inputs = row.dataset, self.store.client.get_run(self.run_id).inputs
        for used in inputs.dataset_inputs if inputs is not None else ():
            same = (used.dataset.name, used.dataset.digest) == (
                ref.name,
                ref.digest[:_DIGEST_CHARS],
            )
            if same and all(tag.value != row.context for tag in used.tags):
                return replace(ref, name=f"{ref.name} ({row.context})")
        return ref

    def _write_model(self, row: Made) -> None:
        from mlflow.entities import LoggedModelOutput

        client = self.store.client
        model_id = self._model_made_by(row) or self._make_model(row)
        client.set_tag(self.run_id, TAG_MODEL_ID, model_id)
        client.set_tag(self.run_id, TAG_ADAPTER, row.folder)
        outputs = client.get_run(self.run_id).outputs
        if outputs is None or all(model.model_id != model_id for model in outputs.model_outputs):
            client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step=0)])
        self.model_ids[row.key] = model_id

    def _model_made_by(self, row: Made) -> str | None:
        models = self.store.client.search_logged_models(
            [self.store.experiment_id], f"source_run_id = '{self.run_id}'"
        )
        return next((m.model_id for m in models if m.tags.get(_TAG_MADE) == row.key), None)

    def _make_model(self, row: Made) -> str:
        """Do what `mlflow.create_external_model` does, without its global state."""
        from mlflow.entities import LoggedModelStatus

        made = self.store.client.create_logged_model(
            self.store.experiment_id,
            name=row.name,
            source_run_id=self.run_id,
            tags=row.tags
            | {TAG_ADAPTER: row.folder, _TAG_MADE: row.key, "mlflow.model.isExternal": "true"},
        )
        self.store.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        return str(made.model_id)

    def _write_used(self, row: Used) -> None:
        from mlflow.entities import LoggedModelInput

        self.store.client.set_tag(self.run_id, TAG_USED_MODEL_ID, row.model_id)
        self.store.client.log_inputs(self.run_id, models=[LoggedModelInput(row.model_id)])

    def _write_traces(self, rows: list[Row]) -> None:
        # The client's own tracing goes through global state and a queue that loses what fails.
        from mlflow.tracing.client import TracingClient

        client = TracingClient(self.store.uri)
        spans = []
        for row in rows:
            assert isinstance(row, Traced)
            info, span = build_trace(row, self.store.experiment_id, self.run_id)
            client.start_trace(info)
            spans.append(span)
        client.log_spans(self.store.experiment_id, spans)


def _together(rows: list[Row]) -> int:
    """Count the leading rows that one call can write; at least one."""
    kinds = (Traced,) if isinstance(rows[0], Traced) else (Point, Param, Tag)
    room, chars = dict(_TOGETHER), 0
    for count, row in enumerate(rows):
        chars += 150 + len(getattr(row, "value", "")) if isinstance(row, Param | Tag) else 150
        if not isinstance(row, kinds) or not room[type(row)] or chars > _TOGETHER_CHARS:
            return max(1, count)
        room[type(row)] -= 1
    return len(rows)


def _is_final(error: Exception, row: Row) -> bool:
    """Whether to tell the store the same again can never help."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

    if isinstance(error, MlflowException):
        cause = error.__cause__
        if isinstance(cause, SQLAlchemyError):  # a full disk, a damaged file: not the row's fault
            return isinstance(cause, DataError | IntegrityError)
        if error.error_code == "ENDPOINT_NOT_FOUND":  # or a proxy's page while the server restarts
            return isinstance(row, Traced)
        return error.error_code in _FINAL
    if isinstance(row, File):
        return isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError)
    return isinstance(error, TypeError | ValueError)


def _dataset(ref: DatasetRef) -> "Dataset":
    from mlflow.entities import Dataset as RunDataset

    local = Path(ref.source).is_absolute()
    profile = {"num_rows": ref.rows, "format": ref.format, "digest": ref.digest}
    return RunDataset(
        name=ref.name,
        digest=ref.digest[:_DIGEST_CHARS],
        source_type="local" if local else "hugging_face",
        source=json.dumps({"uri" if local else "path": ref.source}),
        profile=json.dumps(profile),
    )
