"""Progress reports of long operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one stage."""

    stage: str
    done: float | None = None
    total: float | None = None
    unit: Literal["", "B"] = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Do nothing."""
