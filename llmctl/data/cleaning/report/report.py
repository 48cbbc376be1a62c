"""What did cleaning find, change and remove? Plain values, for a table and for JSON."""

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
    """Where the first of them stand: a line, with its file where there are several files."""
    kinds: Mapping[str, int]
    """What was found in these rows, and how often."""


@dataclass(frozen=True, slots=True)
class SizePercentiles:
    """How large rows are."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """What the rows are like, before or after."""

    rows: int
    characters: int
    """Of all rows together."""
    characters_per_row: SizePercentiles
    turns_per_row: SizePercentiles
    languages: Mapping[str, int]
    """Rows by the language or the script of what is learnt, most first; `?` has too little text."""
    tokens_per_row: SizePercentiles | None = None
    """Of `token_sample` rows, evenly spread; `None` without a model."""
    token_sample: int = 0


@dataclass(frozen=True, slots=True)
class DuplicateCluster:
    """Rows that say the same, or nearly."""

    rows: int
    kept: str
    """Where the row stands that is kept."""
    others: tuple[str, ...]
    """Where the first of the others stand."""


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What came of cleaning a dataset. The same rows and settings give the same report."""

    source: str
    output: str | None
    """`None` if nothing was written."""
    formats: tuple[str, ...]
    digest_before: str
    """As `DatasetRef.digest`."""
    digest_after: str
    unreadable: int
    """Rows that could not be read and were left out."""
    problems: tuple[str, ...]
    """The first of the reasons."""
    changed: int
    """Rows that any rule changed."""
    rules: tuple[RuleReport, ...]
    """Those that were on, in their order."""
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
        """Whether no rule had anything to say."""
        return not self.unreadable and not any(rule.hits for rule in self.rules)

    def plain(self) -> dict[str, Any]:
        """Return what JSON can say."""
        return {"llmctl": __version__, **asdict(self)}


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule says of one row."""

    rule: str
    action: RuleAction
    says: str
    """Empty where it has nothing to say."""


@dataclass(frozen=True, slots=True)
class RowExplanation:
    """What becomes of one row, and why."""

    where: str
    said: tuple[RuleVerdict, ...]
    removed_by: str | None
    changes: tuple[tuple[str, str], ...]
    """Each text or further column that changes, before and after."""
