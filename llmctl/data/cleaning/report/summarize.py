"""How is what was found summed up: for the whole dataset, and for a single row?"""

from typing import Any

import numpy as np

from llmctl.data.cleaner import CleanedDataset
from llmctl.data.cleaning.pipeline.chunk import (
    MAX_EXAMPLES,
    UNREADABLE,
    UNREADABLE_CODE,
    SpooledRow,
)
from llmctl.data.cleaning.pipeline.corpus_rules import DETAIL_TEMPLATES
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

_CLUSTERS = 3
_PROBLEMS = 20


def build_report(
    cleaned: CleanedDataset, source: str, output: str | None, counter: TokenCounter | None
) -> CleanReport:
    """Sum up what the rules did to a dataset."""
    ledger, job = cleaned.ledger, cleaned.job
    readable, kept = ledger.is_readable, ledger.is_kept
    rules = []
    for number, (name, settings) in enumerate(job.settings.rules().items(), 1):
        if not settings.is_on:
            continue
        removed = int((ledger.rows["removed_by"] == number).sum())
        if name in DETAIL_TEMPLATES:
            hits = cleaned.relations[name].hits
            first = np.flatnonzero(hits)[:MAX_EXAMPLES].tolist()
            examples = tuple(map(ledger.place, first))
            rules.append(
                RuleReport(name, settings.action, int(hits.sum()), 0, removed, examples, {})
            )
        else:
            count = ledger.counts.get(name)
            rules.append(
                RuleReport(
                    name,
                    settings.action,
                    count.hits if count else 0,
                    count.changed if count else 0,
                    removed,
                    tuple(map(ledger.place, count.examples)) if count else (),
                    dict(count.kinds.most_common()) if count else {},
                )
            )
    return CleanReport(
        source=source,
        output=output,
        formats=tuple(sorted(ledger.formats)),
        digest_before=ledger.digest(readable, after=False),
        digest_after=ledger.digest(kept, after=True),
        unreadable=int((~readable).sum()),
        problems=tuple(str(problem) for problem in ledger.problems.first[:_PROBLEMS]),
        changed=int(ledger.rows["is_changed"].sum()),
        rules=tuple(rules),
        before=dataset_statistics(ledger, readable, job, counter, after=False),
        after=dataset_statistics(ledger, kept, job, counter, after=True),
        clusters=_clusters(cleaned),
        settings=_asked(cleaned),
    )


def corpus_rule_detail(cleaned: CleanedDataset, rule: str, index: int) -> str:
    """Say which earlier row a rule found for a row."""
    relation = cleaned.relations[rule]
    where = cleaned.ledger.place(int(relation.of[index]))
    return DETAIL_TEMPLATES[rule].format(where=where, likeness=float(relation.likeness[index]))


def _asked(cleaned: CleanedDataset) -> dict[str, Any]:
    """Return the settings of the rules that are on, as YAML would have them."""
    dumped = cleaned.job.settings.model_dump(mode="json", by_alias=True)
    rules = cleaned.job.settings.rules()
    return {name: values for name, values in dumped.items() if rules[name].is_on}


def _clusters(cleaned: CleanedDataset) -> tuple[DuplicateCluster, ...]:
    ledger = cleaned.ledger
    of = np.full(len(ledger.rows), -1, np.int32)
    for name in ("duplicates", "near-duplicates"):
        if name in cleaned.relations:
            found = cleaned.relations[name].of
            of = np.where(found >= 0, found, of)
    # The row that a duplicate repeats may itself be nearly an earlier one.
    for _ in range(2):
        of = np.where((of >= 0) & (of[of] >= 0), of[of], of)
    members = np.flatnonzero(of >= 0)
    firsts, sizes = np.unique(of[members], return_counts=True)
    largest = sorted(zip((-sizes).tolist(), firsts.tolist(), strict=True))[:_CLUSTERS]
    return tuple(
        DuplicateCluster(
            rows=1 - size,
            kept=ledger.place(first),
            others=tuple(map(ledger.place, members[of[members] == first][:MAX_EXAMPLES].tolist())),
        )
        for size, first in largest
    )


def explain_row(cleaned: CleanedDataset, line: int, counter: TokenCounter | None) -> RowExplanation:
    """Say what every rule says of one row.

    Args:
        line: where the row begins, or any of its lines, in the first of several files; the number
            of the row where rows share a line.

    Raises:
        ConfigError: no row is there.
    """
    ledger, job = cleaned.ledger, cleaned.job
    index, record = _at(cleaned, line)
    where = ledger.place(index)
    number = int(ledger.rows["removed_by"][index])
    if number == UNREADABLE_CODE:
        said = (RuleVerdict(UNREADABLE, "remove", record.detail),)
        return RowExplanation(where, said, UNREADABLE, ())
    cleaner = RowCleaner(job.settings, columns=job.columns, format=job.format, counter=counter)
    original = from_json(record.original)
    row = cleaner.clean(RawRow(record.origin, b"", original))
    assert isinstance(row, CleanedRow)
    says = {name: finding.detail for name, finding in row.findings.items()}
    for name, relation in cleaned.relations.items():
        if relation.hits[index]:
            says[name] = corpus_rule_detail(cleaned, name, index)
    rules = job.settings.rules()
    texts = [*zip(texts_of(row.before), texts_of(row.after), strict=True)]
    read = format_columns(row.before.format).union(job.columns.values())
    further = [name for name in original if name not in read]
    texts += [(f"{name}: {original[name]}", f"{name}: {row.value[name]}") for name in further]
    return RowExplanation(
        where,
        tuple(
            RuleVerdict(name, rule.action if rule.is_on else "off", says.get(name, ""))
            for name, rule in rules.items()
        ),
        list(rules)[number - 1] if number else None,
        tuple((before, after) for before, after in texts if before != after),
    )


def _at(cleaned: CleanedDataset, line: int) -> tuple[int, SpooledRow]:
    ledger = cleaned.ledger
    if ledger.numbers_rows:
        if not 1 <= line <= len(ledger.rows):
            raise ConfigError(
                f"there is no row {line}", hint=f"there are {len(ledger.rows):,} rows"
            )
        return line - 1, ledger.record(line - 1)
    records = enumerate(ledger.records())
    return find_at_line(((r.origin, r.lines_below, (index, r)) for index, r in records), line)
