"""The tracker that writes to MLflow, and the function that opens it."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from llmctl.monitor.base import Tracker
from llmctl.monitor.store import check_store_uri, open_store, redact, sqlite_path, store_uri
from llmctl.monitor.write.delivery import Delivery
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
)
from llmctl.monitor.write.liveness import mark_dead_runs
from llmctl.monitor.write.recovery import deliver_orphaned_spools
from llmctl.monitor.write.sanitize import (
    PARAM_CHARS,
    TAG_CHARS,
    KeyNames,
    flatten_params,
    sanitize_key,
    truncate,
    valid_text,
)
from llmctl.monitor.write.spool import Spool, spool_folder
from llmctl.monitor.write.start import generate_run_name, start_run
from llmctl.monitor.write.writer import EventWriter
from llmctl.types import (
    TAG_ERROR,
    DatasetContext,
    DatasetRef,
    ProgressCallback,
    RequestTrace,
    RunStart,
    RunStatus,
    ignore_progress,
)

MODEL_WAIT_S: Final = 10.0
"""Maximum time that `log_model` waits for the id of the model."""
_FILE_WAIT_S: Final = 60.0
"""Maximum time that a command waits for its run in a SQLite store before it continues."""
_SERVER_WAIT_S: Final = 5.0
"""The same for a tracking server."""
_IGNORED_VARIABLES: Final = {
    "MLFLOW_EXPERIMENT_ID": "MLFLOW_EXPERIMENT_NAME names the experiment",
    "MLFLOW_RUN_ID": "each command records a run of its own, which --resume continues",
}
_FILE_NAME_CHARS: Final = 60
_REASON_CHARS: Final = 300
_NOT_IN_MODEL_NAMES: Final = re.compile(r"""[/:.%"']""")


def check_tracking_uri(tracking_uri: str | None = None, *, enabled: bool = True) -> None:
    """Check the address that `open_tracker` will open, before work that takes long.

    Raises:
        ConfigError: the address of the store cannot be used.
    """
    if enabled:
        check_store_uri(tracking_uri)


def open_tracker(
    start: RunStart,
    *,
    tracking_uri: str | None = None,
    enabled: bool = True,
    warn: Callable[[str], None],
    progress: ProgressCallback = ignore_progress,
) -> Tracker:
    """Start the record of a command, and recover the records of killed ones.

    Args:
        tracking_uri: the store; None takes `MLFLOW_TRACKING_URI`, else SQLite in llmctl's folder.
        enabled: False records nothing, as does every process except rank 0 (`RANK`).
        warn: called with one line when the store fails, and with the fate of the record at the
            end. It may be called from another thread.

    Raises:
        ConfigError: the address of the store cannot be used. A store that does not answer raises
            nothing: `warn` is called, and the record waits on the disk.
    """
    if not enabled or os.environ.get("RANK", "0") not in ("", "0"):
        return Tracker()
    check_store_uri(tracking_uri)
    uri = store_uri(tracking_uri)
    for name, hint in _IGNORED_VARIABLES.items():
        if os.environ.get(name):
            warn(f"tracking: {name} is ignored; {hint}")
    try:
        tracker = MLflowLogger(start, uri, warn=warn, progress=progress)
    except Exception as error:  # no failure of the tracker may stop the work
        warn(redact(f"tracking: this run is not recorded: {error!r}"))
        return Tracker()
    tracker.wait_until_open(_SERVER_WAIT_S if sqlite_path(uri) is None else _FILE_WAIT_S)
    return tracker


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _never_raises(method: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """Report an exception of a method as a warning: the work must continue."""

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            logger: Any = args[0]
            logger._warn_once(f"{method.__name__} failed: {error!r}")
            return None

    return call


class MLflowLogger(Tracker):
    """Writes one run through MLflow's client, with explicit ids and no global state.

    Use `open_tracker` to make one. Every method may be called from any thread; only `log_model` and
    `end` wait for the store.
    """

    def __init__(
        self,
        start: RunStart,
        uri: str,
        *,
        warn: Callable[[str], None],
        progress: ProgressCallback,
    ) -> None:
        self.name = start.name or generate_run_name(start)
        self._ended = False
        self._warn = warn
        self._warned: set[str] = set()
        self._metric_names, self._param_names, self._tag_names = (KeyNames() for _ in range(3))
        started_ms = _now_ms()
        self._spool: Spool | None = None
        with suppress(Exception):  # without a spool, `_require_spool` and the writer report it
            self._spool = Spool.create(uri, start, self.name, started_ms)

        def connect(is_retry: bool) -> Delivery:
            store = open_store(uri, progress)
            return start_run(
                store, start, self.name, started_ms, self._warn_once, is_retry=is_retry
            )

        def on_connected(delivery: Delivery) -> None:
            store = delivery.store
            deliver_orphaned_spools(store, self._warn_once)
            mark_dead_runs(store.client, [store.experiment_id])

        self._writer = EventWriter(connect, on_connected, self._spool, warn)
        self.log_params(start.params)
        self.set_tags(start.tags)
        self._writer.start()

    @property
    def run_id(self) -> str | None:
        return None if self._writer.target is None else self._writer.target.run_id

    def wait_until_open(self, seconds: float) -> None:
        """Return when the run is in the store, the first attempt has failed, or after `seconds`."""
        self._writer.attempted.wait(seconds)

    @_never_raises
    def log_params(self, params: Mapping[str, object]) -> None:
        events: list[Event] = []
        texts = flatten_params(params)
        for name, key in self._param_names.assign(texts).items():
            events.append(ParamEvent(key, truncate(texts[name], PARAM_CHARS)))
            if len(texts[name]) > PARAM_CHARS:
                events += self._text_events(texts[name], f"params/{key[:_FILE_NAME_CHARS]}.txt")
        self._put(events)

    @_never_raises
    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None
    ) -> None:
        now = _now_ms()
        events = []
        keys = self._metric_names.assign(metrics)
        for name, value in metrics.items():
            with suppress(TypeError, ValueError):  # values that are not numbers are left out
                events.append(MetricEvent(keys[str(name)], float(value), step, now, model_id))
        self._put(events)

    @_never_raises
    def set_tags(self, tags: Mapping[str, str]) -> None:
        events: list[Event] = []
        for name, key in self._tag_names.assign(tags).items():
            text = str(tags[name])
            events.append(TagEvent(key, truncate(text, TAG_CHARS)))
            if len(text) > TAG_CHARS:
                events += self._text_events(text, f"tags/{key[:_FILE_NAME_CHARS]}.txt")
        self._put(events)

    @_never_raises
    def log_artifact(self, path: Path, folder: str = "") -> None:
        try:
            copy = self._require_spool().copy_in(path)
        except (OSError, shutil.Error) as error:
            self._warn(f"tracking: {valid_text(f'{path} is not stored with the run: {error}')}")
        else:
            self._put([FileEvent(str(copy), _relative(folder))])

    @_never_raises
    def log_text(self, text: str, file: str) -> None:
        self._put(self._text_events(text, file))

    @_never_raises
    def log_dataset(self, dataset: DatasetRef, context: DatasetContext) -> None:
        self._put([DatasetEvent(dataset, context)])

    @_never_raises
    def log_model(
        self, name: str, folder: Path, tags: Mapping[str, str] | None = None
    ) -> str | None:
        event = ModelOutputEvent(
            key=secrets.token_hex(8),
            name=_NOT_IN_MODEL_NAMES.sub("-", valid_text(name)) or "model",
            folder=valid_text(str(folder.resolve())),
            tags={
                sanitize_key(tag): truncate(str(value), TAG_CHARS)
                for tag, value in (tags or {}).items()
            },
        )
        self._put([event])
        self._writer.flush()
        deadline = time.monotonic() + MODEL_WAIT_S
        while time.monotonic() < deadline and not self._ended:
            if self._writer.target and event.key in self._writer.target.model_ids:
                return self._writer.target.model_ids[event.key]
            if self._writer.is_unavailable:
                break
            time.sleep(0.02)
        return None

    @_never_raises
    def use_model(self, model_id: str) -> None:
        self._put([ModelInputEvent(model_id)])

    @_never_raises
    def complete_ids(self, file: Path) -> None:
        self._put([IdFileEvent(str(file.resolve()))])

    @_never_raises
    def log_trace(self, trace: RequestTrace) -> None:
        self._put([TraceEvent(secrets.token_hex(16), trace)])

    @_never_raises
    def end(self, status: RunStatus, error: str = "") -> None:
        if self._ended:
            return
        if error:
            self.set_tags({TAG_ERROR: error})
        self._put([StatusEvent(status, _now_ms())])
        self._ended = True
        self._writer.end()

    def _put(self, events: Sequence[Event]) -> None:
        if events and not self._ended:
            self._writer.put(events)

    def _warn_once(self, reason: str) -> None:
        """Warn of a rejection or a failure: once per kind, the text before the colon."""
        kind = reason.split(":")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            first = valid_text(reason).splitlines()[0]
            self._warn(f"tracking: {redact(first)[:_REASON_CHARS]}")

    def _text_events(self, text: str, file: str) -> list[Event]:
        folder, _, name = _relative(file).rpartition("/")
        try:
            path = self._require_spool().new_path(name)
            path.write_text(valid_text(text), encoding="utf-8")
        except OSError as error:
            self._warn(f"tracking: {file} is not stored with the run: {error}")
            return []
        return [FileEvent(str(path), folder)]

    def _require_spool(self) -> Spool:
        if self._spool is None:
            raise OSError(f"{spool_folder()} cannot be written")
        return self._spool


def _relative(path: str) -> str:
    """Return a path that stays within the artifacts of the run."""
    parts = path.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
