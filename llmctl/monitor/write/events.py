"""What can be on its way to the store, each a line of JSON if it has to wait on the disk."""

import json
from dataclasses import asdict, dataclass

from llmctl.types import DatasetContext, DatasetRef, RequestTrace, RunStatus


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one curve."""

    key: str
    value: float
    step: int
    time_ms: int
    model_id: str | None = None


@dataclass(frozen=True, slots=True)
class Param:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Tag:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class File:
    """A copy of a file or folder, made when it was logged and deleted when it has arrived."""

    path: str
    folder: str


@dataclass(frozen=True, slots=True)
class Data:
    dataset: DatasetRef
    context: DatasetContext


@dataclass(frozen=True, slots=True)
class Made:
    """A model that the run produced; its files stay in `folder`."""

    key: str
    """Unique, so that the same row makes the model only once."""
    name: str
    folder: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class Used:
    model_id: str


@dataclass(frozen=True, slots=True)
class Traced:
    trace_id: str
    """128 bits in hex."""
    trace: RequestTrace


@dataclass(frozen=True, slots=True)
class Status:
    status: RunStatus
    time_ms: int


Row = Point | Param | Tag | File | Data | Made | Used | Traced | Status
_KINDS = {
    kind.__name__: kind for kind in (Point, Param, Tag, File, Data, Made, Used, Traced, Status)
}


def encode(row: Row) -> str:
    """Write a row as one line of JSON."""
    return json.dumps([type(row).__name__, asdict(row)], ensure_ascii=False, default=str)


def decode(line: str) -> Row:
    """Read what `encode` wrote. Raises `ValueError` for anything else."""
    try:
        kind, fields = json.loads(line)
        if kind == "Data":
            fields["dataset"] = DatasetRef(**fields["dataset"])
        elif kind == "Traced":
            fields["trace"] = RequestTrace(**fields["trace"])
        row: Row = _KINDS[kind](**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a row: {line[:80]}") from error
    return row
