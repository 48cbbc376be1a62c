"""What is wrong with a row, where, and what would be right?"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from llmctl.errors import LlmctlError
from llmctl.types import SourceLocation

FieldPath = tuple[str | int, ...]
"""The way to a value inside a row: `("messages", 2, "role")`."""


class DataError(LlmctlError):
    """Files of examples cannot be used as they are."""

    http_status = 400


@dataclass(frozen=True, slots=True)
class RowError:
    """One thing that is wrong, said so that a person can mend it without asking."""

    origin: SourceLocation
    """The line of the fault itself, which in an indented file may be below the row's first."""
    kind: str
    """A short name to count by, such as `unknown-role`."""
    what: str
    fix: str = ""
    """What would be right."""
    field: str = ""
    """`messages[2].role`, or `column 17` of text that is no JSON."""

    def __str__(self) -> str:
        """Return `file:line:field: what is wrong (what would be right)`."""
        where = f"{self.origin.file}:{self.origin.line}:"
        if self.field:
            where += f"{self.field}:"
        return f"{where} {self.what} ({self.fix})" if self.fix else f"{where} {self.what}"


OnRowError = Callable[[RowError], None]


class RowErrorLog:
    """Keeps the first problems and counts them all; give it as `on_problem`.

    Args:
        keep: problems to keep whole; `None` keeps all of them.
    """

    def __init__(self, keep: int | None = None) -> None:
        self._keep = keep
        self.first: list[RowError] = []
        self.kinds: Counter[str] = Counter()

    def __call__(self, problem: RowError) -> None:
        self.kinds[problem.kind] += 1
        if self._keep is None or len(self.first) < self._keep:
            self.first.append(problem)

    def extend(self, other: "RowErrorLog") -> None:
        """Take over what another log has."""
        room = None if self._keep is None else max(0, self._keep - len(self.first))
        self.first += other.first[:room]
        self.kinds += other.kinds

    @property
    def total(self) -> int:
        return self.kinds.total()


def format_field_path(path: FieldPath) -> str:
    """Write a path as people do: `messages[2].role`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
