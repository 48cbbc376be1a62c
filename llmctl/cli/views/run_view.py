"""View of `llmctl runs`: lists, one run with its lineage, and comparisons, also as JSON values."""

import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmctl.cli import render
from llmctl.cli.views import braille_plot
from llmctl.types import TAG_ADAPTER, MetricPoint, RunRecord

if TYPE_CHECKING:
    from llmctl.monitor.read.lineage import LineageNode
    from llmctl.monitor.read.query import RunComparison
    from llmctl.services.runs import RunDetails

_CURVE_WIDTH = 64
_CURVE_HEIGHT = 8
_MAX_FILES = 20
_METRIC_NAME = 8
"""Width of a metric's name beside its value, in columns."""
_BETTER, _WORSE = "▲", "▼"


def print_run_list(found: Sequence[RunRecord], metric: str) -> None:
    """Print a table of runs; the last column is `metric`, or the key metric of the run."""
    rows = []
    for run in found:
        name = metric if metric in run.metrics else run.key_metric
        value = None if name is None else run.metrics.get(name)
        lasted = run.duration_s
        rows.append(
            (
                run.run_id[:8],
                run.name,
                run.kind or "-",
                _last_part(run.model) or "-",
                run.status,
                render.format_day(run.started),
                render.format_duration(time.time() - run.started if lasted is None else lasted),
                "-"
                if value is None
                else f"{_metric_name(str(name))} {render.format_number(value)}",
            )
        )
    render.print_table(
        ("ID", "NAME", "KIND", "MODEL", "STATUS", "STARTED", "TIME", "METRIC"),
        rows,
        cut=("NAME", "MODEL"),
    )


def print_run(details: "RunDetails", metrics: Sequence[str] | None) -> None:
    """Print a run: properties, parameters, metrics, curves, lineage and files."""
    run = details.run
    render.print_fields({label: text for label, text in _facts(run, details.traces) if text})
    if run.params:
        render.print_heading("parameters")
        render.print_table(("PARAMETER", "VALUE"), list(run.params.items()))
    if details.summaries:
        render.print_heading("metrics")
        render.print_table(
            ("METRIC", "FIRST", "LAST", "MIN", "MAX", "POINTS"),
            [
                (
                    one.name,
                    *map(render.format_number, (one.first, one.last, one.lowest, one.highest)),
                    f"{one.points:,}",
                )
                for one in details.summaries
            ],
            cut=("METRIC",),
        )
    for name in metrics or _curves_of_interest(details):
        _show_curve(name, details.curves[name])
    if details.sources.branches:
        render.print_heading("made from")
        _show_tree(details.sources)
    if details.results.branches:
        render.print_heading("led to")
        _show_tree(details.results)
    if details.files:
        render.print_heading("files")
        some = details.files[:_MAX_FILES]
        render.print_table(
            ("FILE", "SIZE"), [(one.path, render.format_bytes(one.bytes)) for one in some]
        )
        if len(some) < len(details.files):
            render.print_note(
                f"and {len(details.files) - len(some):,} more files; --json lists all"
            )


def run_details_to_dict(details: "RunDetails") -> dict[str, Any]:
    """Return a run as JSON values."""
    from llmctl.monitor.read.record import finite_or_none, run_to_dict

    return {
        **run_to_dict(details.run),
        "curves": [
            {name: finite_or_none(v) if isinstance(v, float) else v for name, v in one.items()}
            for one in map(asdict, details.summaries)
        ],
        "made_from": [_plain_node(branch) for branch in details.sources.branches],
        "led_to": [_plain_node(branch) for branch in details.results.branches],
        "files": [asdict(file) for file in details.files],
        "traces": details.traces,
    }


def print_run_comparison(comparison: "RunComparison") -> None:
    """Print runs side by side, each under its short id."""
    from llmctl.monitor.read.runs import SHORT_ID_CHARS

    ids = [run.run_id[:SHORT_ID_CHARS] for run in comparison.runs]
    render.print_table(
        ("ID", "NAME", "KIND", "STATUS", "STARTED"),
        [
            (short, run.name, run.kind or "-", run.status, render.format_day(run.started))
            for short, run in zip(ids, comparison.runs, strict=True)
        ],
        cut=("NAME",),
    )
    if comparison.differing:
        render.print_heading("parameters that differ")
        render.print_table(
            ("PARAMETER", *ids),
            [
                (name, *("-" if value is None else value for value in values))
                for name, values in comparison.differing.items()
            ],
        )
    marked = any(row.best for row in comparison.metrics)
    if comparison.metrics:
        render.print_heading("metrics, latest values")
        render.print_table(
            ("METRIC", *ids),
            [
                (
                    row.name,
                    *(
                        _cell(value, index in row.best, index in row.worst)
                        for index, value in enumerate(row.values)
                    ),
                )
                for row in comparison.metrics
            ],
        )
    if comparison.equal:
        render.print_note(f"{len(comparison.equal)} parameters are equal; --json lists them")
    if marked:
        render.print_note(f"{_BETTER} best, {_WORSE} worst, by the name of the metric")


def run_comparison_to_dict(comparison: "RunComparison") -> dict[str, Any]:
    """Return a comparison as JSON values."""
    from llmctl.monitor.read.record import finite_or_none, run_to_dict

    return {
        "runs": [run_to_dict(run) for run in comparison.runs],
        "differing": {name: list(values) for name, values in comparison.differing.items()},
        "equal": dict(comparison.equal),
        "metrics": {
            row.name: {
                "values": [finite_or_none(value) for value in row.values],
                "better": row.better,
                "best": sorted(row.best),
                "worst": sorted(row.worst),
            }
            for row in comparison.metrics
        },
    }


def _facts(run: RunRecord, traces: int) -> Iterator[tuple[str, str]]:
    yield "name", run.name
    yield "id", run.run_id
    yield "kind", run.kind
    yield "model", run.model
    yield "status", run.status + (", in the trash" if run.deleted else "")
    yield "started", render.format_timestamp(run.started)
    if run.duration_s is not None:
        yield "duration", render.format_duration(run.duration_s)
    yield "adapter", run.tags.get(TAG_ADAPTER, "")
    yield "traces", f"{traces:,}" if traces else ""
    yield "error", run.error
    yield "note", run.note


def _curves_of_interest(details: "RunDetails") -> list[str]:
    lines = [one.name for one in details.summaries if one.points > 1]
    wanted = [details.run.key_metric, "train/loss", "eval/loss"]
    found = [name for name in dict.fromkeys(wanted) if name in lines]
    return [str(name) for name in (found or lines)[:2]]


def _show_curve(name: str, points: Sequence[MetricPoint]) -> None:
    from llmctl.monitor.read.query import x_values

    render.print_heading(name)
    numbers = [point.value for point in points if math.isfinite(point.value)]
    if not numbers:
        render.print_line("no value is a number")
        return
    encoding = sys.stdout.encoding or "ascii"
    if "utf" not in encoding.lower():
        render.print_note(f"no curve: {encoding} has no characters to draw with")
        return
    high, low = render.format_number(max(numbers)), render.format_number(min(numbers))
    label = max(len(high), len(low))
    available = shutil.get_terminal_size().columns - label - 2
    width = max(10, min(_CURVE_WIDTH, available))
    xs, unit = x_values(points)
    height = 1 if high == low else _CURVE_HEIGHT
    lines = braille_plot.draw_curve(
        xs, [point.value for point in points], width=width, height=height
    )
    for index, text in enumerate(lines):
        edge = high if index == 0 else low if index == len(lines) - 1 else ""
        render.print_line(f"{edge:>{label}} ┤{text}".rstrip())
    first, last = render.format_number(xs[0]), f"{unit} {render.format_number(xs[-1])}"
    render.print_line(f"{'':>{label}}  {first}{last:>{width - len(first)}}")


def _cell(value: float | None, best: bool, worst: bool) -> str:
    if value is None:
        return "-"
    mark = f" {_BETTER}" if best else f" {_WORSE}" if worst else ""
    return render.format_number(value) + mark


def _show_tree(root: "LineageNode") -> None:
    for text in [_label(root), *_branches(root.branches, "")]:
        render.print_line(render.shorten(text))


def _branches(nodes: Sequence["LineageNode"], indent: str) -> Iterator[str]:
    for index, node in enumerate(nodes):
        last = index == len(nodes) - 1
        yield f"{indent}{'└─' if last else '├─'} {_label(node)}"
        yield from _branches(node.branches, indent + ("   " if last else "│  "))


def _label(node: "LineageNode") -> str:
    role = f"{node.role}: " if node.role and node.kind != "model" else ""
    above = " (see above)" if node.seen else ""
    return f"{role}{_title(node)}{above}"


def _title(node: "LineageNode") -> str:
    run, dataset = node.run, node.dataset
    if run is not None:
        value = None if run.key_metric is None else run.metrics.get(run.key_metric)
        figure = "" if value is None else f", {run.key_metric} {render.format_number(value)}"
        return f"{run.name} [{run.run_id[:8]}] {run.status}{figure}"
    if dataset is not None:
        rows = "" if dataset.rows is None else f", {dataset.rows:,} rows"
        return f"{dataset.name} ({dataset.digest[:8]}{rows})"
    return f"adapter {node.name}" if node.kind == "model" else f"{node.name} [{node.id[:8]}]"


def _plain_node(node: "LineageNode") -> dict[str, Any]:
    return {
        "type": node.kind,
        "id": node.id,
        "name": node.name,
        "role": node.role,
        "status": None if node.run is None else node.run.status,
        "rows": None if node.dataset is None else node.dataset.rows,
        "branches": [_plain_node(branch) for branch in node.branches],
    }


def _last_part(path: str) -> str:
    return path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def _metric_name(name: str) -> str:
    short = _last_part(name)
    return render.shorten(short, _METRIC_NAME) if render.is_terminal() else short
