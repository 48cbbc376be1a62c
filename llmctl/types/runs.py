"""What is remembered of one run of a command, and under which names it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

RunKind = Literal["finetune", "eval", "serve", "clean", "bench"]
RunStatus = Literal["running", "finished", "failed", "killed"]
DatasetContext = Literal["training", "evaluation", "source", "output"]
"""What a run did with a dataset: learnt from it, was measured on it, read it to make another,
or made it."""

# The tags of a run. The store keeps more of its own, all under `mlflow.`.
TAG_KIND: Final = "llmctl.kind"
TAG_MODEL: Final = "llmctl.model"
"""As the person named it: catalogue name, hub id or path."""
TAG_ERROR: Final = "llmctl.error"
"""Why a run failed or was killed, in a line or a few."""
TAG_MODEL_ID: Final = "llmctl.model_id"
"""The LoggedModel that this run made."""
TAG_USED_MODEL_ID: Final = "llmctl.used_model_id"
"""The LoggedModel that this run began with: what it measured, served or taught further."""
TAG_KEY_METRIC: Final = "llmctl.key_metric"
"""Name of the one metric that a list of runs shows."""
TAG_ADAPTER: Final = "llmctl.adapter"
"""Absolute folder of the adapter that was made or used."""
TAG_PROCESS: Final = "llmctl.host_pid"
"""Which process writes the run, as `monitor.liveness` reads it."""
TAG_HEARTBEAT: Final = "llmctl.seen"
"""When that process last said that it lives, in Unix seconds; about once a minute."""
TAG_CHANGED_PREFIX: Final = "llmctl.changed."
"""Prefix: what a parameter was set to later; a parameter itself never changes."""
TAG_NOTE: Final = "mlflow.note.content"
TAG_PARENT: Final = "mlflow.parentRunId"

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RunStart:
    """What is known of a run when its command begins."""

    kind: RunKind
    model: str = ""
    """As the person named it; empty where no model is part of the command."""
    name: str | None = None
    """None: made from kind and model, unique, never from the global random state."""
    params: Mapping[str, object] = field(default_factory=lambda: _NOTHING)
    """Settings. A mapping inside becomes `outer.inner`; None is left out."""
    tags: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    parent_run_id: str | None = None
    resume_run_id: str | None = None
    """Go on with this run instead of a new one."""


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """A dataset that a run read or made."""

    name: str
    digest: str
    """As the store keeps it: the beginning of `DatasetRef.digest`."""
    context: str
    """A `DatasetContext`, or what another program wrote."""
    source: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One point of a curve."""

    step: int
    time: float
    """Unix seconds."""
    value: float
    """Not a number, or infinite, where training went wrong."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is remembered."""

    run_id: str
    name: str
    kind: str
    """A `RunKind`, or what another program wrote."""
    model: str
    status: RunStatus
    started: float
    """Unix seconds."""
    ended: float | None = None
    """Unix seconds; None while it runs."""
    params: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    metrics: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    """The latest value of each."""
    tags: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    error: str = ""
    note: str = ""
    key_metric: str | None = None
    parent_run_id: str | None = None
    model_id: str | None = None
    """The LoggedModel that this run made."""
    used_model_id: str | None = None
    """The LoggedModel that this run began with."""
    artifact_uri: str = ""
    datasets: tuple[DatasetUse, ...] = ()
    deleted: bool = False
    """It lies in the trash."""

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end; None while it runs."""
        return None if self.ended is None else max(0.0, self.ended - self.started)


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One request that a server answered, for the record."""

    request_id: str
    started: float
    """Unix seconds."""
    duration_s: float
    ttft_s: float | None = None
    """Seconds to the first token; None if none came."""
    queued_s: float | None = None
    """Seconds until its prompt began to be read."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that had been computed before."""
    finish_reason: str | None = None
    error: str = ""
    model_id: str | None = None
    """The LoggedModel that answered."""
    prompt: object = None
    """Only where content may be kept: the messages, as JSON would hold them."""
    answer: str | None = None
    """Only where content may be kept."""
