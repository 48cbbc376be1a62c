"""One row as it stands in its file."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmctl.data.problems import Problem
from llmctl.types import Origin


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file."""

    origin: Origin
    raw: bytes
    """As it is in the file; the row of a Parquet file or a hub's dataset as JSON. Empty where the
    problem is not one of a row, such as an array that is not closed."""
    value: Mapping[str, object] = field(default_factory=dict)
    """Empty where there are problems."""
    problems: tuple[Problem, ...] = ()
    """Why the row cannot be read."""
