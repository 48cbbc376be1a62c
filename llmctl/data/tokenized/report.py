"""What became of the rows that training was given?"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from llmctl.types import SourceLocation

AffectedKind = Literal["refused", "nothing-to-learn", "no-pair", "too-long"]
"""Why a row is not learnt as it stands: the template refuses it; it has no reply that a server
would be asked for; it is no preference pair, where pairs are wanted; it exceeds max_length."""

_SHOWN = 20
"""Origins, and distinct reasons of a kind, that are kept."""


@dataclass(frozen=True, slots=True)
class AffectedRows:
    """Rows that did not become what they were, for one reason."""

    kind: AffectedKind
    reason: str
    count: int
    origins: tuple[SourceLocation, ...]
    """The first 20 of them."""


@dataclass(frozen=True, slots=True)
class TokenizeReport:
    """What became of the rows, train and eval together unless named otherwise."""

    rows: int
    sequences: int
    eval_sequences: int
    """Of `sequences`, those held out."""
    tokens: int
    supervised_tokens: int
    """Tokens that are targets of the loss."""
    length_p50: int
    """Tokens per sequence, like the next two."""
    length_p95: int
    length_max: int
    truncated: tuple[AffectedRows, ...]
    """Rows of which a part is left: whole replies, or pieces of plain text."""
    dropped: tuple[AffectedRows, ...]
    """Rows of which nothing is left."""
    notes: tuple[str, ...]
    """What a person should know, a sentence each."""
    key: str = ""
    """Equal keys are equal sequences, whatever file they come from."""
    cached: bool = False
    """Nothing was tokenised: the sequences were on the disk already."""

    @property
    def dropped_rows(self) -> int:
        return sum(loss.count for loss in self.dropped)

    @property
    def truncated_rows(self) -> int:
        return sum(loss.count for loss in self.truncated)

    def write(self, file: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        file.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, file: Path, *, key: str, cached: bool) -> Self:
        """Read what `write` wrote."""
        fields = json.loads(file.read_text(encoding="utf-8"))
        for name in ("truncated", "dropped"):
            fields[name] = tuple(
                AffectedRows(
                    **loss
                    | {"origins": tuple(SourceLocation(**origin) for origin in loss["origins"])}
                )
                for loss in fields[name]
            )
        fields |= {"notes": tuple(fields["notes"]), "key": key, "cached": cached}
        return cls(**fields)


class AffectedRowsCounter:
    """Counts losses by reason, keeping the first origins of each."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[AffectedKind, str]] = Counter()
        self._origins: dict[tuple[AffectedKind, str], list[SourceLocation]] = {}

    def add(self, kind: AffectedKind, reason: str, origin: SourceLocation) -> None:
        if (kind, reason) not in self._counts and len(self._counts) >= _SHOWN:
            reason = "other reasons"  # a template may put the row's own words into its refusal
        self._counts[kind, reason] += 1
        first = self._origins.setdefault((kind, reason), [])
        if len(first) < _SHOWN:
            first.append(origin)

    def losses(self) -> tuple[AffectedRows, ...]:
        """Return them, the most frequent first."""
        return tuple(
            AffectedRows(kind, reason, count, tuple(self._origins[kind, reason]))
            for (kind, reason), count in self._counts.most_common()
        )
