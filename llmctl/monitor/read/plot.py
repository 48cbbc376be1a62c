"""How do the curves of runs look as a picture? One panel per metric, one line per run, as a PNG."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmctl.errors import LlmctlError
from llmctl.monitor.read.metrics import x_values
from llmctl.types import MetricPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Curves = Mapping[str, Sequence[MetricPoint]]

# Okabe and Ito's colours, told apart by people who see colours differently.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES: Final = ("-", "--", ":")
_CHINESE_FONTS: Final = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the one face of that file which older Matplotlibs see
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
_FIRST_EASTERN: Final = "\u2e80"
"""From here on characters need another font than Matplotlib's own."""
_FEW_POINTS = 30


def plot_curves(
    runs: Sequence[tuple[str, str, Curves]], metrics: Sequence[str], path: Path
) -> None:
    """Write a PNG, whole or not at all.

    Args:
        runs: a name for people, an id for where no font can write that name, and the curves.
        metrics: one panel each.

    Raises:
        LlmctlError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 1 if len(metrics) == 1 else 2
    rows = math.ceil(len(metrics) / columns)
    fonts = _fonts()
    with rc_context({"font.family": fonts, "axes.unicode_minus": False}):
        figure = Figure(figsize=(6.5 * columns, 0.6 + 3.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axes in grid[len(metrics) :]:
            axes.set_visible(False)
        handles: dict[str, Line2D] = {}
        for axes, metric in zip(grid, metrics, strict=False):
            for index, (name, run_id, curves) in enumerate(runs):
                legible = len(fonts) > 1 or max(name) < _FIRST_EASTERN
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
        _save(figure, path)


def _line(axes: "Axes", points: Sequence[MetricPoint], index: int, label: str) -> "Line2D":
    xs, unit = x_values(points)
    axes.set_xlabel(unit)
    (line,) = axes.plot(
        xs,
        [point.value if math.isfinite(point.value) else math.nan for point in points],
        color=_COLOURS[index % len(_COLOURS)],
        linestyle=_DASHES[index // len(_COLOURS) % len(_DASHES)],
        marker="o" if len(points) <= _FEW_POINTS else None,
        markersize=3,
        linewidth=1.4,
        label=label,
    )
    return line


def _fonts() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]


def _save(figure: "Figure", path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            figure.savefig(aside, format="png", dpi=150)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise LlmctlError(f"{path} cannot be written: {error.strerror or error}") from error
