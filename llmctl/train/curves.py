"""How did the losses go? A picture of them beside the adapter."""

from pathlib import Path

from llmctl.monitor.read.plot import plot_curves
from llmctl.types import MetricPoint, TrainReport

CURVE_FILE = "curves.png"


def draw_curves(report: TrainReport, path: Path) -> None:
    """Write a PNG with the losses over the steps, if there are any."""
    curves = {"train/loss": report.losses, "eval/loss": report.eval_losses}
    points = {
        name: [MetricPoint(step, 0.0, loss) for step, loss in losses]
        for name, losses in curves.items()
        if losses
    }
    if points:
        plot_curves([(path.parent.name, report.run_id or "run", points)], list(points), path)
