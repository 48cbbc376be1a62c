"""The tracker that remembers: turns what it is told into rows for the writer."""

import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmctl.monitor.store import open_store
from llmctl.monitor.write.delivery import Delivery
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
from llmctl.monitor.write.liveness import mark_dead_runs
from llmctl.monitor.write.recovery import deliver_orphaned_spools
from llmctl.monitor.write.sanitize import (
    PARAM_CHARS,
    TAG_CHARS,
    flatten_params,
    sanitize_key,
    truncate,
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
)

MODEL_WAIT_S: Final = 10.0
"""How long `log_model` waits for the id of the model it made."""
_FILE_CHARS: Final = 60
_REASON_CHARS: Final = 300
_NOT_IN_MODEL_NAMES: Final = re.compile(r"""[/:.%"']""")


class MLflowLogger:
    """Writes one run through MLflow's client, with explicit ids and no global state.

    Made by `open_tracker`. Every method may be called from any thread, and none but `log_model` and
    `end` waits for the store.
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
        started_ms = _now_ms()
        self._spool: Spool | None = None
        with suppress(OSError):
            self._spool = Spool.create(uri, start, self.name, started_ms)

        told = set()

        def refused(reason: str) -> None:
            kind = reason.split(":")[0]  # a thousand points refused are one thing to say
            if kind not in told:
                told.add(kind)
                warn(f"tracking: {reason.splitlines()[0][:_REASON_CHARS]}")

        def connect(again: bool) -> Delivery:
            store = open_store(uri, progress)
            return start_run(store, start, self.name, started_ms, refused, again=again)

        def connected(delivery: Delivery) -> None:
            store = delivery.store
            deliver_orphaned_spools(store, refused)
            mark_dead_runs(store.client, [store.experiment_id])

        self._writer = EventWriter(connect, connected, self._spool, warn)
        self.log_params(start.params)
        self.set_tags(start.tags)
        self._writer.start()

    @property
    def run_id(self) -> str | None:
        return None if self._writer.target is None else self._writer.target.run_id

    def wait_until_open(self, seconds: float) -> None:
        """Return when the run is in the store, the store has failed, or the time is over."""
        self._writer.tried.wait(seconds)

    def log_params(self, params: Mapping[str, object]) -> None:
        rows: list[Row] = []
        for name, text in flatten_params(params).items():
            rows.append(Param(name, truncate(text, PARAM_CHARS)))
            if len(text) > PARAM_CHARS:
                rows += self._text_rows(text, f"params/{name[:_FILE_CHARS]}.txt")
        self._put(rows)

    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int = 0, model_id: str | None = None
    ) -> None:
        now = _now_ms()
        rows = []
        for name, value in metrics.items():
            with suppress(TypeError, ValueError):  # no number, no point
                rows.append(Point(sanitize_key(name), float(value), step, now, model_id))
        self._put(rows)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        rows: list[Row] = []
        for name, value in tags.items():
            rows.append(Tag(sanitize_key(name), truncate(str(value), TAG_CHARS)))
            if len(str(value)) > TAG_CHARS:
                rows += self._text_rows(str(value), f"tags/{sanitize_key(name)[:_FILE_CHARS]}.txt")
        self._put(rows)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        try:
            copy = self._kept().keep_copy(path)
        except (OSError, shutil.Error) as error:
            self._warn(f"tracking: {path} is not kept with the run: {error}")
        else:
            self._put([File(str(copy), _inside(folder))])

    def log_text(self, text: str, file: str) -> None:
        self._put(self._text_rows(text, file))

    def log_dataset(self, dataset: DatasetRef, context: DatasetContext) -> None:
        self._put([Data(dataset, context)])

    def log_model(
        self, name: str, folder: Path, tags: Mapping[str, str] | None = None
    ) -> str | None:
        row = Made(
            key=secrets.token_hex(8),
            name=_NOT_IN_MODEL_NAMES.sub("-", name) or "model",
            folder=str(folder.resolve()),
            tags={
                sanitize_key(tag): truncate(str(value), TAG_CHARS)
                for tag, value in (tags or {}).items()
            },
        )
        self._put([row])
        self._writer.hurry()
        last = time.monotonic() + MODEL_WAIT_S
        while time.monotonic() < last and not self._ended:
            if self._writer.target and row.key in self._writer.target.model_ids:
                return self._writer.target.model_ids[row.key]
            if self._writer.away:
                break
            time.sleep(0.02)
        return None

    def use_model(self, model_id: str) -> None:
        self._put([Used(model_id)])

    def log_trace(self, trace: RequestTrace) -> None:
        self._put([Traced(secrets.token_hex(16), trace)])

    def end(self, status: RunStatus, error: str = "") -> None:
        if self._ended:
            return
        if error:
            self.set_tags({TAG_ERROR: error})
        self._put([Status(status, _now_ms())])
        self._ended = True
        self._writer.end()

    def _put(self, rows: Sequence[Row]) -> None:
        if rows and not self._ended:
            self._writer.put(rows)

    def _text_rows(self, text: str, file: str) -> list[Row]:
        folder, _, name = _inside(file).rpartition("/")
        try:
            path = self._kept().place(name)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            self._warn(f"tracking: {file} is not kept with the run: {error}")
            return []
        return [File(str(path), folder)]

    def _kept(self) -> Spool:
        if self._spool is None:
            raise OSError(f"{spool_folder()} cannot be written")
        return self._spool


def _inside(path: str) -> str:
    """Make a path that cannot lead out of the run's files."""
    parts = path.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
