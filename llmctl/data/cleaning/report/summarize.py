"""The report on a cleaned dataset, and the explanation of a single row."""

from typing import Any

import numpy as np

from llmctl.data.cleaning.pipeline.chunk import (
    MAX_EXAMPLES,
    UNREADABLE,
    UNREADABLE_CODE,
    SpooledRow,
)
from llmctl.data.cleaning.pipeline.corpus_rules import DETAIL_TEMPLATES, CleanedDataset
from llmctl.data.cleaning.pipeline.row_cleaner import CleanedRow, RowCleaner
from llmctl.data.cleaning.report.report import (
    CleanReport,
    DuplicateCluster,
    RowExplanation,
    RuleReport,
    RuleVerdict,
)
from llmctl.data.cleaning.report.statistics import dataset_statistics
from llmctl.data.cleaning.rules.lengths import TokenCounter
from llmctl.data.cleaning.rules.rule import texts_of
from llmctl.data.formats.columns import format_columns
from llmctl.data.rows.extended_json import from_json
from llmctl.data.rows.row import RawRow, find_at_line
from llmctl.errors import ConfigError

_MAX_CLUSTERS = 3
_MAX_PROBLEMS = 20


def build_report(
    cleaned: CleanedDataset, source: str, output: str | None, counter: TokenCounter | None
) -> CleanReport:
    """Sum up what the rules did to a dataset."""
    index, job = cleaned.index, cleaned.job
    readable, kept = index.is_readable, index.is_kept
    rules = []
    for number, (name, settings) in enumerate(job.settings.rules().items(), 1):
        if not settings.is_on:
            continue
        removed = int((index.rows["removed_by"] == number).sum())
        if name in DETAIL_TEMPLATES:
            hits = cleaned.earlier_rows[name].hits
            first = np.flatnonzero(hits)[:MAX_EXAMPLES].tolist()
            examples = tuple(map(index.place, first))
            rules.append(
                RuleReport(name, settings.action, int(hits.sum()), 0, removed, examples, {})
            )
        else:
            count = index.counts.get(name)
            rules.append(
                RuleReport(
                    name,
                    settings.action,
                    count.hits if count else 0,
                    count.changed if count else 0,
                    removed,
                    tuple(map(index.place, count.examples)) if count else (),
                    dict(count.kinds.most_common()) if count else {},
                )
            )
    return CleanReport(
        source=source,
        output=output,
        formats=tuple(sorted(index.formats)),
        digest_before=index.digest(readable, after=False),
        digest_after=index.digest(kept, after=True),
        unreadable=int((~readable).sum()),
        problems=tuple(str(problem) for problem in index.problems.first[:_MAX_PROBLEMS]),
        changed=int(index.rows["is_changed"].sum()),
        rules=tuple(rules),
        before=dataset_statistics(index, readable, job, counter, after=False),
        after=dataset_statistics(index, kept, job, counter, after=True),
        clusters=_clusters(cleaned),
        settings=_active_settings(cleaned),
    )


def _active_settings(cleaned: CleanedDataset) -> dict[str, Any]:
    """Return the settings of the rules that are on, as YAML holds them."""
    dumped = cleaned.job.settings.model_dump(mode="json", by_alias=True)
    rules = cleaned.job.settings.rules()
    return {name: values for name, values in dumped.items() if rules[name].is_on}


def _clusters(cleaned: CleanedDataset) -> tuple[DuplicateCluster, ...]:
    index = cleaned.index
    earlier = np.full(len(index.rows), -1, np.int32)
    for name in ("duplicates", "near-duplicates"):
        if name in cleaned.earlier_rows:
            indices = cleaned.earlier_rows[name].indices
            earlier = np.where(indices >= 0, indices, earlier)
    # The row that a duplicate repeats may itself be a near duplicate of an earlier one.
    for _ in range(2):
        earlier = np.where((earlier >= 0) & (earlier[earlier] >= 0), earlier[earlier], earlier)
    members = np.flatnonzero(earlier >= 0)
    firsts, sizes = np.unique(earlier[members], return_counts=True)
    largest = sorted(zip((-sizes).tolist(), firsts.tolist(), strict=True))[:_MAX_CLUSTERS]
    return tuple(
        DuplicateCluster(
            rows=1 - size,
            kept=index.place(first),
            others=tuple(
                map(index.place, members[earlier[members] == first][:MAX_EXAMPLES].tolist())
            ),
        )
        for size, first in largest
    )


def explain_row(cleaned: CleanedDataset, line: int, counter: TokenCounter | None) -> RowExplanation:
    """Return the verdict of every rule on one row.

    Args:
        line: any line of the row, in the first file of several; the number of the row where rows
            share a line.

    Raises:
        ConfigError: there is no row at that line.
    """
    index, job = cleaned.index, cleaned.job
    number, record = _find_row(cleaned, line)
    where = index.place(number)
    code = int(index.rows["removed_by"][number])
    if code == UNREADABLE_CODE:
        verdicts = (RuleVerdict(UNREADABLE, "remove", record.detail),)
        return RowExplanation(where, verdicts, UNREADABLE, ())
    cleaner = RowCleaner(job.settings, columns=job.columns, format=job.format, counter=counter)
    original = from_json(record.original)
    row = cleaner.clean(RawRow(record.origin, b"", original))
    assert isinstance(row, CleanedRow)
    details = {name: finding.detail for name, finding in row.findings.items()}
    for name, earlier in cleaned.earlier_rows.items():
        if earlier.hits[number]:
            details[name] = cleaned.detail(name, number)
    rules = job.settings.rules()
    texts = [*zip(texts_of(row.before), texts_of(row.after), strict=True)]
    used = format_columns(row.before.format).union(job.columns.values())
    other_columns = [name for name in original if name not in used]
    texts += [(f"{name}: {original[name]}", f"{name}: {row.value[name]}") for name in other_columns]
    return RowExplanation(
        where,
        tuple(
            RuleVerdict(name, rule.action if rule.is_on else "off", details.get(name, ""))
            for name, rule in rules.items()
        ),
        list(rules)[code - 1] if code else None,
        tuple((before, after) for before, after in texts if before != after),
    )


def _find_row(cleaned: CleanedDataset, line: int) -> tuple[int, SpooledRow]:
    index = cleaned.index
    if index.numbers_rows:
        if not 1 <= line <= len(index.rows):
            raise ConfigError(f"there is no row {line}", hint=f"there are {len(index.rows):,} rows")
        return line - 1, index.record(line - 1)
    records = enumerate(index.records())
    return find_at_line(((r.origin, r.extra_lines, (number, r)) for number, r in records), line)
