"""Report of a run: summary rows, notes, and conversion to JSON."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llmctl import __version__
from llmctl.bench.host import HostInfo
from llmctl.bench.stats import LevelMetrics, LevelResult, median_metrics, metric_ratios
from llmctl.config.bench import BenchConfig, PromptSet
from llmctl.types import ModelSpec


@dataclass(frozen=True, slots=True)
class Side:
    """A server or engine that was measured."""

    label: str
    where: str
    """URL, or `in process`."""
    model: str
    details: str = ""
    """Number type, quantisation and device of an engine in this process."""
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One concurrency level of one prompt set: the medians over all rounds."""

    prompts: PromptSet
    concurrency: int
    sides: tuple[LevelMetrics, ...]
    errors: tuple[int, ...]
    """Errors per side, over all rounds."""
    ratio: LevelMetrics | None
    """First side divided by the second; `None` with one side."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All results of a run."""

    date: str
    """Start of the run: ISO 8601, UTC."""
    host: HostInfo
    config: BenchConfig
    sides: tuple[Side, ...]
    levels: tuple[LevelResult, ...]
    """In the order of measurement."""
    complete: bool
    """Whether all planned levels were measured."""

    def rows(self) -> list[SummaryRow]:
        """Summarise the rounds of every measured level."""
        return [
            row
            for prompts in self.config.prompt_sets
            for concurrency in self.config.concurrency
            if (row := self._row(prompts, concurrency)) is not None
        ]

    def _row(self, prompts: PromptSet, concurrency: int) -> SummaryRow | None:
        by_side = [
            [
                level
                for level in self.levels
                if (level.side, level.prompts, level.concurrency) == (side, prompts, concurrency)
            ]
            for side in range(len(self.sides))
        ]
        if not any(by_side):
            return None
        sides = tuple(median_metrics([level.figures for level in levels]) for levels in by_side)
        return SummaryRow(
            prompts,
            concurrency,
            sides,
            tuple(sum(sum(level.errors.values()) for level in levels) for levels in by_side),
            metric_ratios(*sides) if len(sides) == 2 else None,
        )

    def notes(self) -> list[str]:
        """Return notes on short replies, missing token counts and errors, a sentence each."""
        notes = []
        for index, side in enumerate(self.sides):
            levels = [level for level in self.levels if level.side == index]
            short = sum(level.short_replies for level in levels)
            if short:
                total = sum(level.replies for level in levels)
                notes.append(
                    f"{side.label}: {short} of {total} replies were shorter than "
                    f"{self.config.max_tokens} tokens"
                )
            if any(level.counted_by == "chunks" and level.replies for level in levels):
                notes.append(
                    f"{side.label}: the server reports no token counts, so chunks were counted"
                )
            errors = sum((Counter(level.errors) for level in levels), Counter[str]())
            notes += [f"{side.label}: {count} x {text}" for text, count in errors.most_common()]
        return notes

    def failed_sides(self) -> list[Side]:
        """Return the sides whose requests all failed."""
        failed = []
        for index, side in enumerate(self.sides):
            levels = [level for level in self.levels if level.side == index]
            if levels and not any(level.replies for level in levels):
                failed.append(side)
        return failed

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable data, with the metrics of every round."""
        return {
            "llmctl": __version__,
            "date": self.date,
            "complete": self.complete,
            "machine": asdict(self.host),
            "settings": self.config.measurement(),
            "sides": [asdict(side) for side in self.sides],
            "summary": [asdict(row) for row in self.rows()],
            "levels": [asdict(level) for level in self.levels],
            "notes": self.notes(),
        }
