"""Events of a run on their way to the tracking store, and their form as lines of JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Final

from llmctl.dataclass_json import from_json
from llmctl.types import DatasetContext, DatasetRef, RequestTrace, RunStatus


@dataclass(frozen=True, slots=True)
class MetricEvent:
    """One point of a metric."""

    key: str
    value: float
    step: int
    time_ms: int
    """Unix milliseconds."""
    model_id: str | None = None
    """The LoggedModel that it measures."""


@dataclass(frozen=True, slots=True)
class ParamEvent:
    """One parameter of the run."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class TagEvent:
    """One tag of the run."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A copy of a file or folder, made when it was logged and deleted after delivery."""

    path: str
    folder: str
    """Below the artifacts of the run."""


@dataclass(frozen=True, slots=True)
class DatasetEvent:
    """A dataset that the run read or wrote."""

    dataset: DatasetRef
    context: DatasetContext


@dataclass(frozen=True, slots=True)
class ModelOutputEvent:
    """A model that the run produced. Its files stay in `folder`."""

    key: str
    """Unique, so that repeated delivery creates the model only once."""
    name: str
    folder: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelInputEvent:
    """A LoggedModel that the run uses."""

    model_id: str


@dataclass(frozen=True, slots=True)
class IdFileEvent:
    """A JSON file whose null fields `run_id` and `model_id` get the ids of the run."""

    path: str


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """A request that a server answered."""

    trace_id: str
    """128 bits in hex."""
    trace: RequestTrace


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """A change of the status of the run."""

    status: RunStatus
    time_ms: int
    """Unix milliseconds."""


Event = (
    MetricEvent
    | ParamEvent
    | TagEvent
    | FileEvent
    | DatasetEvent
    | ModelOutputEvent
    | ModelInputEvent
    | IdFileEvent
    | TraceEvent
    | StatusEvent
)

_CLASSES: Final[dict[str, type[Event]]] = {
    "Point": MetricEvent,
    "Param": ParamEvent,
    "Tag": TagEvent,
    "File": FileEvent,
    "Data": DatasetEvent,
    "Made": ModelOutputEvent,
    "Used": ModelInputEvent,
    "Ids": IdFileEvent,
    "Traced": TraceEvent,
    "Status": StatusEvent,
}
"""Kind in a spool file -> class. The kinds are part of the file format."""
_KINDS: Final = {cls: kind for kind, cls in _CLASSES.items()}


def encode(event: Event) -> str:
    """Return an event as one line of ASCII, which also holds paths that are not UTF-8."""
    return json.dumps([_KINDS[type(event)], asdict(event)], default=str)


def decode(line: str) -> Event:
    """Parse a line of `encode`. Raises `ValueError` for anything else."""
    try:
        kind, fields = json.loads(line)
        event: Event = from_json(_CLASSES[kind], fields, unknown="refuse")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an event: {line[:80]}") from error
    return event
