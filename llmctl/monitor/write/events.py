"""Events of a run on their way to the tracking store, and their form as lines of JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Final

from llmctl.dataclass_json import from_json
from llmctl.types import DatasetContext, DatasetRef, RequestTrace, RunStatus


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a run records."""


@dataclass(frozen=True, slots=True)
class MetricEvent(Event):
    """One point of a metric."""

    key: str
    value: float
    step: int
    time_ms: int
    """Unix milliseconds."""
    model_id: str | None = None
    """The LoggedModel that it measures."""


@dataclass(frozen=True, slots=True)
class ParamEvent(Event):
    """One parameter of the run."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class TagEvent(Event):
    """One tag of the run."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class FileEvent(Event):
    """A copy of a file or folder, made when it was logged and deleted after delivery."""

    path: str
    folder: str
    """Below the artifacts of the run."""


@dataclass(frozen=True, slots=True)
class DatasetEvent(Event):
    """A dataset that the run read or wrote."""

    dataset: DatasetRef
    context: DatasetContext


@dataclass(frozen=True, slots=True)
class ModelOutputEvent(Event):
    """A model that the run produced. Its files stay in `folder`."""

    key: str
    """Unique, so that repeated delivery creates the model only once."""
    name: str
    folder: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelInputEvent(Event):
    """A LoggedModel that the run uses."""

    model_id: str


@dataclass(frozen=True, slots=True)
class IdFileEvent(Event):
    """A JSON file whose null fields `run_id` and `model_id` get the ids of the run."""

    path: str


@dataclass(frozen=True, slots=True)
class TraceEvent(Event):
    """A request that a server answered."""

    trace_id: str
    """128 bits in hex."""
    trace: RequestTrace


@dataclass(frozen=True, slots=True)
class StatusEvent(Event):
    """A change of the status of the run."""

    status: RunStatus
    time_ms: int
    """Unix milliseconds."""


_KINDS: Final[dict[type[Event], tuple[str, str]]] = {
    MetricEvent: ("Point", "a metric"),
    ParamEvent: ("Param", "a parameter"),
    TagEvent: ("Tag", "a tag"),
    FileEvent: ("File", "a file"),
    DatasetEvent: ("Data", "a dataset"),
    ModelOutputEvent: ("Made", "the output model"),
    ModelInputEvent: ("Used", "the input model"),
    IdFileEvent: ("Ids", "the run id"),
    TraceEvent: ("Traced", "a trace"),
    StatusEvent: ("Status", "the status"),
}
"""Kind in a spool file, which is part of the file format, and name in messages."""
_CLASSES: Final = {kind: cls for cls, (kind, _) in _KINDS.items()}


def describe(event: Event) -> str:
    """Return what an event records, as messages name it."""
    return _KINDS[type(event)][1]


def encode(event: Event) -> str:
    """Return an event as one line of ASCII, which also holds paths that are not UTF-8."""
    return json.dumps([_KINDS[type(event)][0], asdict(event)], default=str)


def decode(line: str) -> Event:
    """Parse a line of `encode`. Raises `ValueError` for anything else."""
    try:
        kind, fields = json.loads(line)
        event: Event = from_json(_CLASSES[kind], fields, unknown="refuse")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an event: {line[:80]}") from error
    return event
