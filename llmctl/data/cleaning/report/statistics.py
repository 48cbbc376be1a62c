"""Statistics of the rows of a dataset."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.row_index import RowIndex
from llmctl.data.cleaning.report.report import DatasetStatistics, SizePercentiles
from llmctl.data.cleaning.rules.lengths import TokenCounter
from llmctl.errors import TemplateError
from llmctl.percentiles import observed_percentiles

TOKEN_SAMPLE_ROWS = 1000
"""Number of rows whose tokens are counted."""


def dataset_statistics(
    index: RowIndex,
    rows: NDArray[np.bool_],
    job: CleanJob,
    counter: TokenCounter | None,
    *,
    after: bool,
) -> DatasetStatistics:
    """Compute the statistics of selected rows.

    Args:
        rows: shape (rows,), the selected rows.
        counter: counts tokens; `None` leaves them out.
        after: measure the cleaned rows, not the original ones.
    """
    table = index.rows[rows]
    characters = table["chars_after" if after else "chars_before"]
    tokens = _token_counts(index, np.flatnonzero(rows), job, counter, after=after)
    return DatasetStatistics(
        rows=len(table),
        characters=int(characters.sum(dtype=np.int64)),
        characters_per_row=_percentiles(characters.tolist()),
        turns_per_row=_percentiles(table["turns"].tolist()),
        languages=_languages(table["language"], index.languages),
        tokens_per_row=_percentiles(tokens) if tokens else None,
        token_sample=len(tokens),
    )


def _token_counts(
    index: RowIndex,
    rows: NDArray[np.int64],
    job: CleanJob,
    counter: TokenCounter | None,
    *,
    after: bool,
) -> list[int]:
    if counter is None or not len(rows):
        return []
    count = min(len(rows), TOKEN_SAMPLE_ROWS)
    found = []
    for row in rows[np.arange(count) * len(rows) // count].tolist():
        try:
            found.append(counter.row(job.example(index.record(row), after=after)))
        except TemplateError:
            continue
    return found


def _percentiles(values: Collection[int]) -> SizePercentiles:
    if not values:
        return SizePercentiles(0, 0, 0)
    return SizePercentiles(*observed_percentiles(values, 50, 95, 100))


def _languages(numbers: NDArray[np.uint8], known: Mapping[str, int]) -> dict[str, int]:
    counts = np.bincount(numbers, minlength=len(known))
    found = {name: int(counts[number]) for name, number in known.items() if counts[number]}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
