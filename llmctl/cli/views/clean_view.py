"""View of `llmctl data clean`: the rules, the report and the explanation of one row."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmctl.cli import render

if TYPE_CHECKING:
    from llmctl.data.cleaning.report.outputs import CleanOutputs
    from llmctl.data.cleaning.report.report import (
        CleanReport,
        DatasetStatistics,
        RowExplanation,
        SizePercentiles,
    )

_MAX_KINDS = 6
_MAX_LANGUAGES = 5


def print_clean_rules() -> None:
    """Print every rule with its thresholds."""
    from llmctl.data.cleaning.settings import CleanSettings, hyphenated

    rows = []
    for name, rule in CleanSettings().rules().items():
        thresholds = []
        for field, info in type(rule).model_fields.items():
            if field != "action":
                value = getattr(rule, field)
                shown = ",".join(value) if isinstance(value, tuple) else value
                value = "not set" if shown in (None, "") else shown
                thresholds.append(f"{hyphenated(field)} ({value}): {info.description}")
        action = f"off: needs {rule.missing}" if rule.missing else rule.action
        actions = "/".join(action for action in rule.actions if action != "off")
        description = type(rule).__doc__ or ""
        rows.append((name, action, actions, "; ".join((description, *thresholds))))
    render.print_table(("RULE", "ACTION", "ACTIONS", "DESCRIPTION"), rows)


def print_clean_report(
    report: "CleanReport", outputs: "CleanOutputs | None", *, as_json: bool
) -> None:
    """Print the table of rules, the statistics before and after, and the output files."""
    if as_json:
        render.print_json(report.to_dict())
    else:
        _print_rules(report)
        _print_statistics(report)
        _print_clusters(report)
    kept = f"{report.after.rows:,} of {report.before.rows + report.unreadable:,} rows"
    if outputs is None:
        render.print_note(f"would keep {kept}; nothing was written")
        return
    render.print_note(f"{kept} written to {outputs.rows}")
    removed = report.removed + report.unreadable
    render.print_note(f"{removed:,} removed rows: {outputs.rejected}; report: {outputs.report}")


def _print_rules(report: "CleanReport") -> None:
    total = report.before.rows + report.unreadable
    rows = [
        (
            rule.name,
            rule.action,
            f"{rule.hits:,}",
            f"{rule.changed:,}",
            f"{rule.removed:,}",
            _percent(rule.hits, total),
            ", ".join(rule.examples),
        )
        for rule in report.rules
        if rule.hits
    ]
    if report.unreadable:
        count = f"{report.unreadable:,}"
        rows.insert(
            0, ("unreadable", "remove", count, "0", count, _percent(report.unreadable, total), "")
        )
    if rows:
        columns = ("RULE", "ACTION", "HITS", "CHANGED", "REMOVED", "%", "LINES")
        render.print_table(columns, rows, cut=("LINES",))
    unmatched = [rule.name for rule in report.rules if not rule.hits]
    if unmatched:
        render.print_line(f"no match: {', '.join(unmatched)}")
    for problem in report.problems:
        render.print_line(f"unreadable: {problem}")
    for rule in report.rules:
        if rule.kinds:
            render.print_line(f"{rule.name}: {_counts(rule.kinds, _MAX_KINDS)}")


def _print_statistics(report: "CleanReport") -> None:
    before, after = _statistics(report.before), _statistics(report.after)
    render.print_heading("before and after")
    rows = [(name, before.get(name, ""), after.get(name, "")) for name in {**before, **after}]
    render.print_table(("", "BEFORE", "AFTER"), rows)


def _statistics(of: "DatasetStatistics") -> dict[str, str]:
    figures = {
        "rows": f"{of.rows:,}",
        "characters": f"{of.characters:,}",
        "characters per row": _spread(of.characters_per_row),
        "messages per row": _spread(of.turns_per_row),
        "languages": _counts(of.languages, _MAX_LANGUAGES),
    }
    if of.tokens_per_row is not None:
        sample = "" if of.token_sample == of.rows else f" (of {of.token_sample:,} rows)"
        figures["tokens per row"] = _spread(of.tokens_per_row) + sample
    return figures


def _print_clusters(report: "CleanReport") -> None:
    if not report.clusters:
        return
    render.print_heading("largest duplicate groups")
    for cluster in report.clusters:
        others = ", ".join(cluster.others)
        more = (
            f" and {missing:,} more" if (missing := cluster.rows - 1 - len(cluster.others)) else ""
        )
        render.print_line(f"{cluster.rows:,} rows: {cluster.kept} is kept, not {others}{more}")


def print_clean_explanation(explanation: "RowExplanation", *, as_json: bool) -> None:
    """Print the result of every rule for one row, and its texts before and after."""
    if as_json:
        render.print_json(asdict(explanation))
        return
    render.print_table(
        ("RULE", "ACTION", "RESULT"),
        [(said.rule, said.action, said.says or "-") for said in explanation.said],
    )
    for before, after in explanation.changes:
        render.print_heading("before (-) and after (+)")
        # Show invisible characters, such as zero-width ones, as escapes.
        old, new = ([*map(_visible, text.split("\n"))] for text in (before, after))
        for line in list(difflib.unified_diff(old, new, lineterm="", n=1))[2:]:
            render.print_line(line)
    verdict = "changed" if explanation.changes else "unchanged"
    if explanation.removed_by is not None:
        verdict = f"removed by {explanation.removed_by}"
    render.print_note(f"the row at {explanation.where}: {verdict}")


def _visible(line: str) -> str:
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return shown.rstrip(" ") + "·" * (len(shown) - len(shown.rstrip(" ")))


def _spread(spread: "SizePercentiles") -> str:
    return f"p50 {spread.p50:,}, p95 {spread.p95:,}, max {spread.max:,}"


def _counts(counts: Mapping[str, int], most: int) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[most:])
    return ", ".join([*shown, *([f"others {rest:,}"] if rest else [])])


def _percent(count: int, whole: int) -> str:
    share = 100 * count / whole if whole else 0
    return f"{share:.1f}" if share >= 0.05 or not count else "<0.1"
