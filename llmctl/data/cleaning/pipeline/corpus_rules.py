"""Which rows go because of other rows? Duplicates, prompts with several answers, near duplicates.

Near duplicates come last: what they are compared with must stay, or a second run would find more.
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
    "same-prompt": "answers otherwise than {where}",
    "near-duplicates": "{likeness:.2f} like {where}",
}
"""What each rule says of a row, with the earlier row's place; in the order of the rules."""


@dataclass(frozen=True, slots=True)
class EarlierRows:
    """What one rule found: of each row the earlier row it belongs to."""

    of: NDArray[np.int32]
    """Shape (rows,): index of the earlier row, or -1."""
    likeness: NDArray[np.float32]
    """Shape (rows,)."""

    @property
    def hits(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.of >= 0
        return found


def apply_corpus_rules(
    ledger: RowIndex, job: CleanJob, progress: ProgressCallback
) -> dict[str, EarlierRows]:
    """Compare the rows, and mark in the ledger those that are removed for it."""
    rules, rows = job.settings.rules(), ledger.rows
    names = list(rules)
    found = {}
    for name in DETAIL_TEMPLATES:
        if not rules[name].is_on:
            continue
        alive = rows["removed_by"] == 0
        match name:
            case "duplicates":
                relation = _certain(first_equal(rows["digest"], alive))
            case "same-prompt":
                relation = _certain(first_of_prompt(rows["prompt"], rows["answer"], alive))
            case _:
                relation = _near(ledger, job, alive, progress)
        if rules[name].action == "remove":
            rows["removed_by"][relation.hits] = 1 + names.index(name)
        found[name] = relation
    return found


def _certain(of: NDArray[np.int64]) -> EarlierRows:
    return EarlierRows(of.astype(np.int32), np.ones(len(of), np.float32))


def _near(
    ledger: RowIndex, job: CleanJob, alive: NDArray[np.bool_], progress: ProgressCallback
) -> EarlierRows:
    settings = job.settings.near_duplicates
    of = np.full(len(alive), -1, np.int32)
    likeness = np.zeros(len(alive), np.float32)

    def comparable(row: int) -> ComparableRow:
        example = job.example(ledger.record(row))
        return ComparableRow(row_parts(example, ignore_numbers=settings.ignore_numbers))

    if ledger.sketches is not None:
        bands = Banding.at(settings.threshold).bands
        for near in find_near_duplicates(
            ledger.sketches, bands, alive, comparable, settings.threshold, progress
        ):
            of[near.row], likeness[near.row] = near.of, near.likeness
    return EarlierRows(of, likeness)
