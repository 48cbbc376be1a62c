"""What came of a whole run: rows to print and draw, what a reader must be told, and plain data."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llmctl import __version__
from llmctl.bench.config import BenchConfig
from llmctl.bench.host import HostInfo
from llmctl.bench.prompts import PromptSet
from llmctl.bench.stats import LevelMetrics, LevelResult, median_metrics, metric_ratios
from llmctl.types import ModelSpec


@dataclass(frozen=True, slots=True)
class Side:
    """Who was measured."""

    label: str
    where: str
    """URL, or `in process`."""
    model: str
    details: str = ""
    """What we know of an engine of our own: number type, quantisation, device."""
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One concurrency of one prompt set: the medians over all rounds."""

    prompts: PromptSet
    concurrency: int
    sides: tuple[LevelMetrics, ...]
    errors: tuple[int, ...]
    """Of each side, over all rounds."""
    ratio: LevelMetrics | None
    """First side by second; `None` with one side."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything that is known of a run."""

    date: str
    """When it began: ISO 8601, UTC."""
    machine: HostInfo
    plan: BenchConfig
    sides: tuple[Side, ...]
    levels: tuple[LevelResult, ...]
    """In the order they were measured; not all that were planned unless it is complete."""
    complete: bool

    def rows(self) -> list[SummaryRow]:
        """Sum up the rounds of every level that was measured."""
        return [
            row
            for prompts in self.plan.prompts
            for concurrency in self.plan.concurrency
            if (row := self._row(prompts, concurrency)) is not None
        ]

    def _row(self, prompts: PromptSet, concurrency: int) -> SummaryRow | None:
        of_side = [
            [
                level
                for level in self.levels
                if (level.side, level.prompts, level.concurrency) == (side, prompts, concurrency)
            ]
            for side in range(len(self.sides))
        ]
        if not any(of_side):
            return None
        sides = tuple(median_metrics([level.figures for level in levels]) for levels in of_side)
        return SummaryRow(
            prompts,
            concurrency,
            sides,
            tuple(sum(sum(level.errors.values()) for level in levels) for levels in of_side),
            metric_ratios(*sides) if len(sides) == 2 else None,
        )

    def notes(self) -> list[str]:
        """Say what the figures alone do not, a sentence each."""
        notes = []
        for index, side in enumerate(self.sides):
            levels = [level for level in self.levels if level.side == index]
            short = sum(level.short_replies for level in levels)
            if short:
                total = sum(level.replies for level in levels)
                notes.append(
                    f"{side.label}: {short} of {total} replies were shorter than "
                    f"{self.plan.max_tokens} tokens"
                )
            if any(level.counted_by == "chunks" and level.replies for level in levels):
                notes.append(f"{side.label}: the server counts no tokens, so chunks were counted")
            errors = sum((Counter(level.errors) for level in levels), Counter[str]())
            notes += [f"{side.label}: {count} x {text}" for text, count in errors.most_common()]
        return notes

    def silent_sides(self) -> list[Side]:
        """Return the sides of which every request failed."""
        silent = []
        for index, side in enumerate(self.sides):
            levels = [level for level in self.levels if level.side == index]
            if levels and not any(level.replies for level in levels):
                silent.append(side)
        return silent

    def plain(self) -> dict[str, Any]:
        """Return what JSON can say, every figure of every round included."""
        return {
            "llmctl": __version__,
            "date": self.date,
            "complete": self.complete,
            "machine": asdict(self.machine),
            "settings": asdict(self.plan),
            "sides": [asdict(side) for side in self.sides],
            "summary": [asdict(row) for row in self.rows()],
            "levels": [asdict(level) for level in self.levels],
            "notes": self.notes(),
        }
