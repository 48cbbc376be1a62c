"""Plots of metrics as a PNG, with one panel per metric and one line per run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmctl.atomic_files import atomic_path
from llmctl.errors import LlmctlError
from llmctl.monitor.read.query import x_values
from llmctl.types import MetricPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Curves = Mapping[str, Sequence[MetricPoint]]

# The palette of Okabe and Ito, which is distinguishable with colour blindness.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES: Final = ("-", "--", ":")
_CJK_FONTS: Final = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the only face of the font file that older versions of Matplotlib find
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)
_FIRST_CJK: Final = "\u2e80"
"""Characters from here on are not in the default font of Matplotlib."""
_MAX_MARKED_POINTS = 30


def plot_curves(
    runs: Sequence[tuple[str, str, Curves]], metrics: Sequence[str], path: Path
) -> None:
    """Plot metrics of runs and write a PNG, complete or not at all.

    Args:
        runs: name, id, and curves of each run. The id is the label if no font has the characters
            of the name.
        metrics: names of the metrics, one panel each.

    Raises:
        LlmctlError: the file cannot be written.
    """
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    columns = 1 if len(metrics) == 1 else 2
    rows = math.ceil(len(metrics) / columns)
    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _CJK_FONTS if name in installed)]
    with rc_context({"font.family": fonts, "axes.unicode_minus": False}):
        figure = Figure(figsize=(6.5 * columns, 0.6 + 3.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axes in grid[len(metrics) :]:
            axes.set_visible(False)
        handles: dict[str, Line2D] = {}
        for axes, metric in zip(grid, metrics, strict=False):
            for index, (name, run_id, curves) in enumerate(runs):
                legible = len(fonts) > 1 or max(name) < _FIRST_CJK
                label = f"{name} [{run_id}]" if legible else run_id
                points = curves.get(metric, ())
                if points:
                    handles[label] = _line(axes, points, index, label)
            axes.set_title(metric, fontsize=11)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper center",
            ncols=min(len(handles), 2 * columns) or 1,
            frameon=False,
            fontsize=9,
        )
        try:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format="png", dpi=150)
        except OSError as error:
            raise LlmctlError(f"{path} cannot be written: {error.strerror or error}") from error


def _line(axes: "Axes", points: Sequence[MetricPoint], index: int, label: str) -> "Line2D":
    xs, unit = x_values(points)
    axes.set_xlabel(unit)
    (line,) = axes.plot(
        xs,
        [point.value if math.isfinite(point.value) else math.nan for point in points],
        color=_COLOURS[index % len(_COLOURS)],
        linestyle=_DASHES[index // len(_COLOURS) % len(_DASHES)],
        marker="o" if len(points) <= _MAX_MARKED_POINTS else None,
        markersize=3,
        linewidth=1.4,
        label=label,
    )
    return line
