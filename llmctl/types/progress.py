"""Reports from long work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """One report from long work: how far a stage is."""

    stage: str
    done: float | None = None
    total: float | None = None
    unit: Literal["", "B"] = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Report to nobody."""
