"""View of `llmctl data check`, and of row errors in the other data commands."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.cli import render

if TYPE_CHECKING:
    from llmctl.data.operations.check import CheckReport, Percentiles
    from llmctl.data.operations.overlap import DuplicateGroups
    from llmctl.data.rows.row_errors import RowError, RowErrorLog
    from llmctl.types import SourceLocation

_MAX_ERRORS = 20
"""Row errors to print without --all."""
_MAX_SAME_KIND = 3
_MAX_LANGUAGES = 4


def report_to_dict(report: "CheckReport") -> dict[str, Any]:
    """Return the report as JSON values."""
    values = asdict(report)
    values["sound"] = report.sound
    values["problems"] = [
        asdict(problem) | {"message": str(problem)} for problem in report.problems
    ]
    return values


def print_check_report(report: "CheckReport", *, everything: bool) -> None:
    """Print the report as names and values, followed by the row errors."""
    where = _LocationFormatter(report.files)
    bad = report.rows - report.whole_rows
    lines = {
        "files": ", ".join(report.files),
        "rows": f"{report.rows:,}" + (f", {bad:,} with problems" if bad else ""),
        "format": ", ".join(f"{name} {count:,}" for name, count in report.formats.items()),
        "not used": "; ".join(
            f"{', '.join(columns)} ({name})" for name, columns in report.unused.items()
        ),
        "turns": _spread(report.turns, "user messages per conversation"),
        "system": _share(report.with_system, report.whole_rows),
        "tools": _share(report.with_tools, report.whole_rows),
        "languages": _languages(report),
        **_tokens(report, where),
        "duplicates": _repeats(report.duplicates, "repeat an earlier row", where),
        "conflicts": _repeats(report.contradictions, "have the prompt of another row", where),
    }
    if report.leaks is not None:
        share = _share(report.leaks.rows, report.eval_rows or 0)
        pairs = "; ".join(where.all(pair, " = ") for pair in report.leaks.largest)
        lines["eval rows"] = f"{report.eval_rows:,}"
        lines["leaks"] = f"{share} have a prompt of the training data: {pairs}" if share else "none"
    lines["not read"] = ", ".join(report.not_read)
    render.print_fields({name: text for name, text in lines.items() if text})
    for line in _problem_lines(report.problems, report.problem_kinds, everything):
        render.print_line(line)


def print_row_errors(log: "RowErrorLog", *, everything: bool) -> None:
    """Print row errors of another command to stderr."""
    for line in _problem_lines(log.first, dict(log.kinds), everything):
        render.print_note(line)


def _problem_lines(
    problems: "Sequence[RowError]", kinds: dict[str, int], everything: bool
) -> list[str]:
    """Return the first errors, a few of each kind, and the number of the others."""
    if everything:
        return [str(problem) for problem in problems]
    lines: list[str] = []
    left, alike = Counter(kinds), Counter[tuple[str, str]]()
    for problem in problems:
        alike[problem.kind, problem.what] += 1
        if alike[problem.kind, problem.what] <= _MAX_SAME_KIND and len(lines) < _MAX_ERRORS:
            lines.append(str(problem))
            left[problem.kind] -= 1
    if more := +left:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in more.most_common())
        lines.append(f"and {more.total():,} more ({counts}); --all prints them")
    return lines


class _LocationFormatter:
    """Formats the locations of rows: without the file name if there is only one file."""

    def __init__(self, files: "Sequence[str]") -> None:
        self._many = len(files) > 1 or Path(files[0]).is_dir()

    def __call__(self, origin: "SourceLocation") -> str:
        return f"{origin.file}:{origin.line}" if self._many else f"line {origin.line}"

    def all(self, origins: "Sequence[SourceLocation]", between: str = ", ") -> str:
        return between.join(map(self, origins))


def _tokens(report: "CheckReport", where: _LocationFormatter) -> dict[str, str]:
    tokens = report.tokens
    if tokens is None:
        return {"tokens": "not counted; --model NAME selects the tokenizer"}
    share = f"{tokens.learnt / tokens.total:.0%}" if tokens.total else "none"
    lines = {
        "tokens": f"{_spread(tokens.per_row, 'per row')}; {tokens.total:,} in total, {share} of "
        f"them trained ({tokens.model})"
    }
    overlong = tokens.overlong
    if overlong is not None:
        rows = _share(overlong.rows, report.whole_rows)
        text = f"{rows or 'no row'} over {overlong.limit:,} tokens"
        if overlong.rows:
            text += f", such as {where.all(overlong.first)}"
        if overlong.lose_end:
            text += f"; truncated, {_rows(overlong.lose_end)} would lose the end-of-turn token"
        if overlong.lose_all:
            text += f", and {_rows(overlong.lose_all)} every complete reply"
        lines["too long"] = text
    for number, (note, count) in enumerate(tokens.notes, 1):
        lines[f"note {number}"] = f"{note} ({_rows(count)})"
    return lines


def _spread(spread: "Percentiles | None", what: str) -> str:
    if spread is None:
        return ""
    return f"{what}: p50 {spread.p50:,}, p95 {spread.p95:,}, max {spread.max:,}"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _share(count: int, whole: int) -> str:
    return f"{_rows(count)} ({count / whole:.1%})" if count else ""


def _languages(report: "CheckReport") -> str:
    codes = Counter(report.languages)
    unknown = codes.pop("?", 0)
    named = codes.most_common(_MAX_LANGUAGES)
    known = [f"{code} {count:,}" for code, count in named]
    if others := codes.total() - sum(count for _, count in named):
        known.append(f"others {others:,}")
    if unknown:
        known.append(f"unknown {unknown:,}")
    chinese = f"; {report.cjk_share:.0%} of the characters are Chinese" if known else ""
    return ", ".join(known) + chinese


def _repeats(repeats: "DuplicateGroups", what: str, where: _LocationFormatter) -> str:
    if not repeats.rows:
        return ""
    shown = "; ".join(where.all(cluster, " = ") for cluster in repeats.largest)
    if repeats.clusters > len(repeats.largest):
        shown += f"; {repeats.clusters:,} groups in total"
    return f"{_rows(repeats.rows)} {what}: {shown}"
