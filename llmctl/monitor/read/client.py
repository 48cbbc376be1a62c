"""Reading of runs through MLflow's client: from a server, or a database with an unknown schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.read.record import RunReader, dataset_use, restore_infinity, run_record
from llmctl.monitor.store import EXPERIMENT, experiment_name, open_client, redact
from llmctl.types import MetricPoint, RunRecord

if TYPE_CHECKING:
    from mlflow.entities import Run

_PAGE = 1000
_TRACE_PAGE = 100


class ClientRunReader(RunReader):
    """Reads any store; does not create a missing experiment."""

    def __init__(self, uri: str) -> None:
        """Open the store. Raises `LlmctlError` if it does not answer or needs an upgrade."""
        self._uri = uri
        with translated_store_errors(uri):
            self._client = open_client(uri)
            names = {EXPERIMENT, experiment_name()}
            found = map(self._client.get_experiment_by_name, sorted(names))
            self._experiments = [one.experiment_id for one in found if one is not None]

    def runs(self, *, deleted: bool = False) -> list[RunRecord]:
        if not self._experiments:
            return []
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        runs: list[RunRecord] = []
        token: str | None = ""
        order = ["attributes.start_time DESC"]
        with translated_store_errors(self._uri):
            while token is not None:
                page = self._client.search_runs(
                    self._experiments, "", view, _PAGE, order, token or None
                )
                runs += map(_record, page)
                token = page.token or None
        return runs

    def curves(self, run_id: str) -> dict[str, list[MetricPoint]]:
        found = {}
        with translated_store_errors(self._uri):
            for key in sorted(self._client.get_run(run_id).data.metrics):
                points = [
                    MetricPoint(point.step, point.timestamp / 1000, restore_infinity(point.value))
                    for point in self._client.get_metric_history(run_id, key)
                ]
                found[key] = sorted(points, key=lambda point: (point.step, point.time))
        return found

    def count_traces(self, run_id: str) -> int:
        count = 0
        token: str | None = ""
        with translated_store_errors(self._uri):
            while token is not None:
                page = self._client.search_traces(
                    locations=self._experiments,
                    run_id=run_id,
                    max_results=_TRACE_PAGE,
                    page_token=token or None,
                    include_spans=False,
                )
                count += len(page)
                token = page.token or None
        return count


@contextmanager
def translated_store_errors(uri: str) -> Iterator[None]:
    """Translate errors of MLflow in the block to errors of llmctl.

    Raises:
        ConfigError: the store rejects a value.
        LlmctlError: the store does not answer, or cannot be used now.
    """
    from requests.exceptions import RequestException

    try:
        yield
    except LlmctlError:
        raise
    except Exception as error:  # of MLflow, SQLAlchemy, requests and database drivers
        shown = redact(uri)
        reason = redact(next(iter(str(error).strip().splitlines()), repr(error)))[:300]
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise ConfigError(f"the tracking store {shown} rejects the value: {reason}") from error
        hint = "check --tracking-uri and MLFLOW_TRACKING_URI, or start the server"
        if isinstance(error.__context__, RequestException):
            reason = "it does not answer"
        if "out-of-date database schema" in reason:
            hint = f"`mlflow db upgrade {shown}` upgrades it, and so does the next run"
        if "database is locked" in reason:
            reason, hint = "it stays locked", "another program writes it; try again"
        raise LlmctlError(f"the tracking store {shown} failed: {reason}", hint=hint) from error


def _record(run: "Run") -> RunRecord:
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    datasets = []
    for used in inputs:
        contexts = (tag.value for tag in used.tags if tag.key == "mlflow.data.context")
        data = used.dataset
        datasets.append(
            dataset_use(
                data.name, data.digest, next(contexts, ""), data.source or "", data.profile or ""
            )
        )
    return run_record(
        run.info.run_id,
        run.info.run_name,
        run.info.status,
        run.info.start_time,
        run.info.end_time,
        run.info.artifact_uri,
        params=dict(sorted(run.data.params.items())),
        metrics={name: restore_infinity(value) for name, value in sorted(run.data.metrics.items())},
        tags=dict(sorted(run.data.tags.items())),
        datasets=datasets,
        deleted=run.info.lifecycle_stage == "deleted",
    )
