"""View of `llmctl finetune`: the plan, progress with metrics, samples and the report."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from llmctl.cli import render
from llmctl.cli.views import braille_plot
from llmctl.types import (
    Progress,
    SampleReply,
    TrainEval,
    TrainEvent,
    TrainNote,
    TrainPlan,
    TrainReport,
    TrainStep,
)

_LINE_S = 10.0
"""Interval of progress lines where stderr is not a terminal."""
_CURVE = (64, 8)
"""Columns and lines of the loss curve."""


class TrainView:
    """Shows a training run on stderr. `close` ends its bars."""

    def __init__(self, *, quiet: bool = False, plan_is_result: bool = False) -> None:
        """Args:
        quiet: show nothing, in all but the first process of a run.
        plan_is_result: print the plan to stdout.
        """
        self._quiet = quiet
        self._print_plan = render.print_line if plan_is_result else render.print_note
        self._open = ExitStack()
        self._loading: Any = None
        self._bars: Any = None
        self._last_line = 0.0

    def close(self) -> None:
        self._open.close()

    def progress(self, report: Progress) -> None:
        """Show the progress before the first step."""
        if self._quiet or self._bars is not None:
            return
        if self._loading is None:
            self._loading = self._open.enter_context(render.show_progress())
        self._loading(report)

    def __call__(self, event: TrainEvent) -> None:
        if self._quiet:
            return
        match event:
            case TrainPlan():
                self.close_bars()
                for text in _plan_lines(event):
                    self._print_plan(text)
                for text in event.notes:
                    render.print_note(f"note: {text}")
            case TrainStep():
                self._step(event)
            case TrainEval():
                self._print(_eval_line(event))
            case TrainNote():
                self._print(f"note: {event.text}")

    def close_bars(self) -> None:
        """End all bars until the next event."""
        self._open.close()
        self._loading = None

    def _print(self, text: str) -> None:
        if self._bars is not None:
            render.print_above(self._bars, text)
            return
        self.close_bars()
        render.print_note(text)

    def _step(self, step: TrainStep) -> None:
        if sys.stderr.isatty():
            self._move_bar(step)
            return
        now = time.monotonic()
        if now - self._last_line >= _LINE_S or step.step in (1, step.steps):
            self._last_line = now
            self._print(f"step {step.step}/{step.steps}  {_format_metrics(step)}")

    def _move_bar(self, step: TrainStep) -> None:
        if self._bars is None:
            self.close_bars()
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

            self._bars = self._open.enter_context(
                render.live_bars(
                    MofNCompleteColumn(),
                    BarColumn(bar_width=20),
                    TextColumn("{task.fields[metrics]}"),
                )
            )
            self._open.callback(setattr, self, "_bars", None)
            self._task = self._bars.add_task("", total=step.steps, metrics="")
        self._bars.update(self._task, completed=step.step, metrics=_format_metrics(step))


def _format_metrics(step: TrainStep) -> str:
    return (
        f"loss {step.loss:.4f}  lr {step.learning_rate:.1e}  grad {step.grad_norm:.2f}  "
        f"{step.tokens_per_s:,.0f} tok/s  {render.format_bytes(step.memory_bytes)}  "
        f"eta {render.format_duration(step.eta_s)}"
    )


def _eval_line(event: TrainEval) -> str:
    when = f"step {event.step}" if event.step else "before training"
    return f"held-out loss {event.loss:.4f}, {when}" + (
        ", the best" * (event.best and event.step > 0)
    )


def _plan_lines(plan: TrainPlan) -> Iterator[str]:
    """Yield the lines of a plan, with the source of each setting."""
    yield (
        f"{plan.model_id}: {plan.parameters / 1e6:,.0f} M parameters, "
        f"{plan.trainable / 1e6:,.2f} M trainable ({plan.trainable / plan.parameters:.1%}), "
        f"{plan.dtype} on {plan.device}"
    )
    yield (
        f"{plan.rows:,} training rows, {plan.eval_rows:,} held out; "
        f"{plan.tokens:,} tokens per epoch, {plan.supervised_share:.0%} of them trained"
    )
    accumulation = f", accumulated {plan.accumulation} times" if plan.accumulation > 1 else ""
    yield (
        f"{plan.steps:,} steps, {plan.steps_per_epoch:,} per epoch; "
        f"micro-batches of {plan.micro_batch_size} rows{accumulation}"
    )
    if plan.memory:
        parts = ", ".join(f"{n} {render.format_bytes(b)}" for n, b in plan.memory.items() if b)
        yield (
            f"memory: {render.format_bytes(plan.peak_bytes)} at the peak, "
            f"{render.format_bytes(plan.free_bytes)} free ({parts})"
        )
    given = [s for s in plan.settings if s.origin != "default"]
    values = {s.name: _value(s.value) for s in plan.settings}
    width = max((len(s.name) for s in given), default=0)
    column = min(40, max((len(values[s.name]) for s in given), default=0))
    for one in given:
        yield f"  {one.name:<{width}}  {values[one.name]:<{column}}  {one.origin}"
    rest = [f"{s.name} {values[s.name]}" for s in plan.settings if _is_listed(s.value, s.origin)]
    yield f"defaults: {', '.join(rest)}"


def _is_listed(value: object, origin: str) -> bool:
    return origin == "default" and value not in (None, (), False, "") and value != {}


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_train_report(report: TrainReport) -> None:
    """Print the result of a training run."""
    held = dict(report.eval_losses)
    lines = {"output": report.output}
    if report.run_id:
        lines["run"] = report.run_id
    lines["steps"] = f"{report.steps:,}" + (", stopped early" if report.stopped_early else "")
    lines["duration"] = (
        f"{render.format_duration(report.seconds)}, {report.tokens_per_s:,.0f} tokens/s"
    )
    if report.losses:
        lines["loss"] = f"{report.losses[0][1]:.4f} -> {report.losses[-1][1]:.4f}"
    if report.best_step is not None:
        before = f"{held[0]:.4f} -> " if 0 in held else ""
        lines["held-out loss"] = f"{before}{held[report.best_step]:.4f}, at step {report.best_step}"
    predicted = f", {render.format_bytes(report.predicted_bytes)} predicted"
    lines["memory"] = render.format_bytes(report.peak_bytes) + predicted * bool(
        report.predicted_bytes
    )
    _show_samples(report.before, report.after)
    _show_curve(report)
    render.print_fields(lines)
    for text in report.notes:
        render.print_note(f"note: {text}")
    render.print_note(f"`llmctl chat --model {report.output}` starts a chat with it")


def _show_samples(before: Sequence[SampleReply], after: Sequence[SampleReply]) -> None:
    if not after:
        return
    known = {reply.prompt: reply.reply for reply in before}
    render.print_table(
        ("PROMPT", "BEFORE", "AFTER"),
        [
            (now.prompt, known.get(now.prompt, ""), now.reply + ("" if now.complete else "..."))
            for now in after
        ],
    )


def _show_curve(report: TrainReport) -> None:
    encoding = sys.stdout.encoding or "ascii"
    if len(report.losses) < 2 or not render.is_terminal() or "utf" not in encoding.lower():
        return
    xs, ys = zip(*report.losses, strict=True)
    render.print_heading(f"training loss, {max(ys):.3f} to {min(ys):.3f}")
    for line in braille_plot.draw_curve(xs, ys, width=_CURVE[0], height=_CURVE[1]):
        render.print_line(line)
