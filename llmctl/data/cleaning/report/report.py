"""The report of cleaning as plain values, for a table and for JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmctl import __version__
from llmctl.data.cleaning.settings import RuleAction


@dataclass(frozen=True, slots=True)
class RuleReport:
    """What one rule did. All counts are of rows."""

    name: str
    action: RuleAction
    hits: int
    changed: int
    removed: int
    """A row that several rules would remove counts for the first of them."""
    examples: tuple[str, ...]
    """Places of the first hits: a line, with its file where there are several files."""
    kinds: Mapping[str, int]
    """Kind of finding -> how often it occurred in these rows."""


@dataclass(frozen=True, slots=True)
class SizePercentiles:
    """Sizes of rows."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Statistics of the rows before or after cleaning."""

    rows: int
    characters: int
    """Of all rows together."""
    characters_per_row: SizePercentiles
    turns_per_row: SizePercentiles
    languages: Mapping[str, int]
    """Rows by language or script of the training text, most first; `?` means too little text."""
    tokens_per_row: SizePercentiles | None = None
    """Of `token_sample` rows, evenly spread; `None` without a model."""
    token_sample: int = 0


@dataclass(frozen=True, slots=True)
class DuplicateCluster:
    """A row and its duplicates and near duplicates."""

    rows: int
    kept: str
    """Place of the row that is kept."""
    others: tuple[str, ...]
    """Places of the first of the other rows."""


@dataclass(frozen=True, slots=True)
class CleanReport:
    """The result of cleaning a dataset. The same rows and settings give the same report."""

    source: str
    output: str | None
    """`None` if nothing was written."""
    formats: tuple[str, ...]
    digest_before: str
    """As `DatasetRef.digest`."""
    digest_after: str
    unreadable: int
    """Number of rows that could not be read and were left out."""
    problems: tuple[str, ...]
    """The first of the reasons."""
    changed: int
    """Number of rows that any rule changed."""
    rules: tuple[RuleReport, ...]
    """The rules that were on, in their order."""
    before: DatasetStatistics
    """Of the rows that can be read."""
    after: DatasetStatistics
    clusters: tuple[DuplicateCluster, ...]
    """The largest ones."""
    settings: Mapping[str, Any]

    @property
    def removed(self) -> int:
        return sum(rule.removed for rule in self.rules)

    @property
    def is_clean(self) -> bool:
        """Whether no rule had a hit and every row could be read."""
        return not self.unreadable and not any(rule.hits for rule in self.rules)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values of JSON, with the version of llmctl."""
        return {"llmctl": __version__, **asdict(self)}


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """The result of one rule for one row."""

    rule: str
    action: RuleAction
    says: str
    """The detail of the finding; empty without a hit."""


@dataclass(frozen=True, slots=True)
class RowExplanation:
    """The verdict of every rule on one row, and the changes to its texts."""

    where: str
    said: tuple[RuleVerdict, ...]
    """The name is part of the format of `--json`, as is `says`."""
    removed_by: str | None
    changes: tuple[tuple[str, str], ...]
    """Each text or other column that changes, before and after."""
