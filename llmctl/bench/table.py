"""The table of a report."""

from collections.abc import Callable
from typing import NamedTuple

from llmctl.bench.report import BenchReport, SummaryRow
from llmctl.bench.stats import LevelMetrics


class _Column(NamedTuple):
    header: str
    metric: str
    format: Callable[[float], str]


def _number(value: float) -> str:
    """Format with three significant digits, or all digits of the integer part."""
    places = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{places}f}"


def _ms(seconds: float) -> str:
    return _number(seconds * 1000)


def _count(value: float) -> str:
    return f"{value:.0f}"


_COLUMNS = (
    _Column("prompt\ntokens", "prompt_tokens", _count),
    _Column("in\ncache", "cached_tokens", _count),
    _Column("1st\nttft", "first_turn_ttft_p50_s", _ms),
    _Column("ttft\np50", "ttft_p50_s", _ms),
    _Column("\np95", "ttft_p95_s", _ms),
    _Column("itl\np50", "itl_p50_s", _ms),
    _Column("\np95", "itl_p95_s", _ms),
    _Column("\np99", "itl_p99_s", _ms),
    _Column("tok/s\neach", "stream_tokens_per_s", _number),
    _Column("\nsum", "sum_tokens_per_s", _number),
    _Column("pre-\nfill", "prefill_tokens_per_s", _number),
    _Column("RAM\nMB", "peak_rss_bytes", lambda count: f"{count / 1e6:.0f}"),
)


def summary_table(report: BenchReport) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows, without columns that are empty on all sides."""
    rows = report.rows()
    columns = [
        column
        for column in _COLUMNS
        if any(getattr(metrics, column.metric) for row in rows for metrics in row.sides)
    ]
    labels = [side.label for side in report.sides]
    two = len(labels) > 1
    head = ["prompts", "at", *(["side"] if two else [])]
    lines = []
    for row in rows:
        for label, metrics, errors in zip(labels, row.sides, row.errors, strict=True):
            name = [label] if two else []
            lines.append([*_head(row), *name, *_cells(columns, metrics), str(errors)])
        if row.ratio is not None:
            cells = _cells([column._replace(format=_times) for column in columns], row.ratio)
            lines.append([*_head(row), "ratio", *cells, ""])
    return [*head, *(column.header for column in columns), "err"], lines


def _head(row: SummaryRow) -> list[str]:
    return [row.prompts, str(row.concurrency)]


def _cells(columns: list[_Column], metrics: LevelMetrics) -> list[str]:
    values = [getattr(metrics, column.metric) for column in columns]
    return [
        "-" if value is None else column.format(value)
        for column, value in zip(columns, values, strict=True)
    ]


def _times(value: float) -> str:
    return f"{value:.2f}x"
