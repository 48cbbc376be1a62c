"""Rules that compare rows: duplicates, prompts with several answers, near duplicates.

Near duplicates come last. A near duplicate is only compared with rows that stay, so that a second
run over the result finds nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.dedup.duplicates import first_equal, first_of_prompt
from llmctl.data.cleaning.dedup.near_duplicates import find_near_duplicates
from llmctl.data.cleaning.dedup.similarity import ComparableRow, row_parts
from llmctl.data.cleaning.dedup.sketch import Banding
from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.row_index import RowIndex
from llmctl.types import ProgressCallback

DETAIL_TEMPLATES = {
    "duplicates": "the same as {where}",
    "same-prompt": "another answer than {where}",
    "near-duplicates": "{similarity:.2f} similar to {where}",
}
"""Rule -> its message for a row, with the place of the earlier row. In the order of the rules."""


@dataclass(frozen=True, slots=True)
class EarlierRows:
    """Result of one rule: for each row the earlier row that it matches."""

    indices: NDArray[np.int32]
    """Shape (rows,): index of the earlier row, or -1."""
    similarities: NDArray[np.float32]
    """Shape (rows,)."""

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Rows that match an earlier one, shape (rows,)."""
        hits: NDArray[np.bool_] = self.indices >= 0
        return hits


@dataclass(frozen=True, slots=True)
class CleanedDataset:
    """A dataset after all rules, before anything is written."""

    job: CleanJob
    index: RowIndex
    earlier_rows: dict[str, EarlierRows]
    """By the names of the rules that compare rows."""

    def detail(self, rule: str, row: int) -> str:
        """Return the message of a rule that compares rows for a row that it matched."""
        earlier = self.earlier_rows[rule]
        return DETAIL_TEMPLATES[rule].format(
            where=self.index.place(int(earlier.indices[row])),
            similarity=float(earlier.similarities[row]),
        )


def apply_corpus_rules(
    index: RowIndex, job: CleanJob, progress: ProgressCallback
) -> CleanedDataset:
    """Compare the rows, and mark the rows to remove in the index."""
    rules, rows = job.settings.rules(), index.rows
    names = list(rules)
    results = {}
    for name in DETAIL_TEMPLATES:
        if not rules[name].is_on:
            continue
        alive = rows["removed_by"] == 0
        match name:
            case "duplicates":
                earlier = _exact(first_equal(rows["digest"], alive))
            case "same-prompt":
                earlier = _exact(first_of_prompt(rows["prompt"], rows["answer"], alive))
            case _:
                earlier = _near(index, job, alive, progress)
        if rules[name].action == "remove":
            rows["removed_by"][earlier.hits] = 1 + names.index(name)
        results[name] = earlier
    return CleanedDataset(job, index, results)


def _exact(indices: NDArray[np.int64]) -> EarlierRows:
    return EarlierRows(indices.astype(np.int32), np.ones(len(indices), np.float32))


def _near(
    index: RowIndex, job: CleanJob, alive: NDArray[np.bool_], progress: ProgressCallback
) -> EarlierRows:
    settings = job.settings.near_duplicates
    indices = np.full(len(alive), -1, np.int32)
    similarities = np.zeros(len(alive), np.float32)

    def comparable(row: int) -> ComparableRow:
        example = job.example(index.record(row))
        return ComparableRow(row_parts(example, ignore_numbers=settings.ignore_numbers))

    if index.sketches is not None:
        bands = Banding.for_threshold(settings.threshold).bands
        for near in find_near_duplicates(
            index.sketches, bands, alive, comparable, settings.threshold, progress
        ):
            indices[near.row] = near.earlier
            similarities[near.row] = near.similarity
    return EarlierRows(indices, similarities)
