"""Plot of a report: throughput and latency over concurrency, as a PNG."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.bench.report import BenchReport, SummaryRow
from llmctl.config.bench import PromptSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    unit: str
    metric: str
    scale: float = 1.0
    upper: str | None = None
    """The metric at the upper edge of the shaded area."""


_LATENCY = "ms, p50 shaded up to p95"
_PANELS = (
    _Panel("Output of all streams", "tokens/s", "sum_tokens_per_s"),
    _Panel("Time to first token", _LATENCY, "ttft_p50_s", 1000, "ttft_p95_s"),
    _Panel("Time between tokens", _LATENCY, "itl_p50_s", 1000, "itl_p95_s"),
)
# Colours that colour-blind readers can distinguish; markers for print in black and white.
_STYLES = (("#0072b2", "o"), ("#d55e00", "s"))
_TITLES: dict[PromptSet, str] = {
    "short": "short chat",
    "long": "long prompt",
    "shared": "shared prefix",
    "multiturn": "second turn",
}


def draw_report(report: BenchReport, path: Path) -> None:
    """Write a PNG: a row of panels per prompt set, a line per side, shaded up to p95."""
    from matplotlib.figure import Figure

    rows = report.rows()
    measured = {row.prompts for row in rows}
    sets = [prompts for prompts in report.config.prompt_sets if prompts in measured]
    figure = Figure(figsize=(12, 0.9 + 3.1 * len(sets)), layout="constrained")
    grid = figure.subplots(len(sets), len(_PANELS), squeeze=False)
    for axes_row, prompts in zip(grid, sets, strict=True):
        of_set = [row for row in rows if row.prompts == prompts]
        for axes, panel in zip(axes_row, _PANELS, strict=True):
            _draw_panel(axes, panel, of_set, [side.label for side in report.sides])
            axes.set_title(f"{panel.title}: {_TITLES[prompts]}", fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("streams at a time")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        frameon=False,
    )
    figure.supxlabel(_footer(report), fontsize=8, color="#666666")
    figure.savefig(path, format="png", dpi=150)


def _footer(report: BenchReport) -> str:
    config, host = report.config, report.host
    rounds = f", median of {config.round_count} rounds" if config.round_count > 1 else ""
    hardware = ", ".join((host.cpu, f"{host.cores} cores", *host.gpus))
    return (
        f"{config.max_tokens} tokens per reply, {config.requests} conversations per stream{rounds}"
        f"; {hardware}; {report.date[:10]}"
    )


def _draw_panel(axes: "Axes", panel: _Panel, rows: list[SummaryRow], labels: list[str]) -> None:
    for side, label in enumerate(labels):
        colour, marker = _STYLES[side]
        known = [
            (row.concurrency, value * panel.scale, row.sides[side])
            for row in rows
            if (value := getattr(row.sides[side], panel.metric)) is not None
        ]
        streams = [at for at, _, _ in known]
        values = [value for _, value, _ in known]
        axes.plot(streams, values, color=colour, marker=marker, label=label)
        if panel.upper is not None:
            upper = [getattr(metrics, panel.upper) * panel.scale for _, _, metrics in known]
            axes.fill_between(streams, values, upper, color=colour, alpha=0.15, linewidth=0)
    levels = sorted({row.concurrency for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.minorticks_off()
    # From zero, so that small differences look small; with a margin above a flat line.
    axes.set_ylim(0, 1.1 * axes.dataLim.y1 if rows else 1)
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
