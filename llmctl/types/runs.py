"""Tracked runs: their tags, parameters, metrics, datasets and traces."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

RunKind = Literal["finetune", "eval", "serve", "clean", "bench"]
RunStatus = Literal["running", "finished", "failed", "killed"]
DatasetContext = Literal["training", "evaluation", "source", "output"]
"""Role of a dataset in a run: training or evaluation data, the input of a new dataset, or the new
dataset."""

# The tags of a run. MLflow adds its own under `mlflow.`.
TAG_KIND: Final = "llmctl.kind"
TAG_MODEL: Final = "llmctl.model"
"""As the user named it: catalogue name, hub id or path."""
TAG_ERROR: Final = "llmctl.error"
"""Why a run failed or was killed, in a few lines."""
TAG_MODEL_ID: Final = "llmctl.model_id"
"""Id of the LoggedModel that the run created."""
TAG_USED_MODEL_ID: Final = "llmctl.used_model_id"
"""Id of the LoggedModel that the run used: evaluated, served or fine-tuned."""
TAG_KEY_METRIC: Final = "llmctl.key_metric"
"""Name of the metric in the list of runs."""
TAG_ADAPTER: Final = "llmctl.adapter"
"""Absolute folder of the adapter that was created or used."""
TAG_PROCESS: Final = "llmctl.host_pid"
"""The process that writes the run, in the format of `monitor.write.liveness`."""
TAG_HEARTBEAT: Final = "llmctl.seen"
"""Unix time of the last sign of life of that process; updated about once a minute."""
TAG_CHANGED_PREFIX: Final = "llmctl.changed."
"""Prefix of the later value of a parameter; MLflow parameters cannot change."""
TAG_NOTE: Final = "mlflow.note.content"
TAG_PARENT: Final = "mlflow.parentRunId"

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RunStart:
    """Data of a run at its start."""

    kind: RunKind
    model: str = ""
    """As the user named it; empty if the command has no model."""
    name: str | None = None
    """`None`: made from kind and model, unique, without the global random state."""
    params: Mapping[str, object] = field(default_factory=lambda: _NOTHING)
    """Settings. A nested mapping becomes `outer.inner`; `None` is left out."""
    tags: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    parent_run_id: str | None = None
    resume_run_id: str | None = None
    """Resume this run instead of creating one."""


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """A dataset that a run read or created."""

    name: str
    digest: str
    """Prefix of `DatasetRef.digest`, as in the store."""
    context: str
    """A `DatasetContext`, or another value that another program wrote."""
    source: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric."""

    step: int
    time: float
    """Unix seconds."""
    value: float
    """NaN or infinite if training diverged."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run in the tracking store."""

    run_id: str
    name: str
    kind: str
    """A `RunKind`, or another value that another program wrote."""
    model: str
    status: RunStatus
    started: float
    """Unix seconds."""
    ended: float | None = None
    """Unix seconds; `None` while it runs."""
    params: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    metrics: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    """The latest value of each metric."""
    tags: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    error: str = ""
    note: str = ""
    key_metric: str | None = None
    parent_run_id: str | None = None
    model_id: str | None = None
    """Id of the LoggedModel that the run created."""
    used_model_id: str | None = None
    """Id of the LoggedModel that the run used."""
    artifact_uri: str = ""
    datasets: tuple[DatasetUse, ...] = ()
    deleted: bool = False
    """Whether it is in the trash."""

    @property
    def duration_s(self) -> float | None:
        """Seconds from start to end; `None` while it runs."""
        return None if self.ended is None else max(0.0, self.ended - self.started)


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """Trace of one request that a server answered."""

    request_id: str
    started: float
    """Unix seconds."""
    duration_s: float
    ttft_s: float | None = None
    """Seconds to the first token; `None` without a token."""
    queued_s: float | None = None
    """Seconds until its prefill started."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens from the KV cache."""
    finish_reason: str | None = None
    error: str = ""
    model_id: str | None = None
    """Id of the LoggedModel that answered."""
    prompt: object = None
    """The messages, JSON-serialisable; only if content is logged."""
    answer: str | None = None
    """Only if content is logged."""
