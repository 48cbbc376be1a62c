"""View of `llmctl eval`: progress with the running score, scores, samples and comparisons."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmctl.cli import render
from llmctl.services.evaluation.request import EvalObserver
from llmctl.types import (
    BenchmarkPlan,
    EngineInfo,
    EvalReport,
    EvalSample,
    PairedComparison,
    Progress,
    SampleResult,
)

_LINE_S = 15.0
"""Interval of progress lines where stderr is not a terminal."""


class EvalView(EvalObserver):
    """Shows the progress of an evaluation on stderr. `close` ends its bars."""

    def __init__(self, clear: Callable[[], None] = lambda: None) -> None:
        """`clear` is called before drawing, to end the bars of another view."""
        self._clear = clear
        self._open = ExitStack()
        self._loading: Any = None
        self._bars: Any = None
        self._task: Any = None
        self._total = self._done = self._before = self._correct = self._failed = 0
        self._started = self._last_line = 0.0
        self._folder: Path | None = None

    def close(self) -> None:
        self._open.close()

    def progress(self, report: Progress) -> None:
        """Show the progress before the first sample."""
        if self._started:
            return
        if self._loading is None:
            self._clear()
            self._loading = self._open.enter_context(render.show_progress())
        self._loading(report)

    def note(self, text: str) -> None:
        if self._bars is None:
            render.print_note(text)
        else:
            render.print_above(self._bars, text)

    def _close_bars(self) -> None:
        """End all bars until the next benchmark starts."""
        self._clear()
        self._open.close()
        self._loading = self._bars = None
        self._started = 0.0

    def loaded(self, info: EngineInfo) -> None:
        self._close_bars()
        render.print_engine_summary(info)

    def begin(
        self, plans: Sequence[BenchmarkPlan], known: Sequence[SampleResult], folder: Path
    ) -> None:
        """Show the benchmarks and the results folder, and start the bar."""
        self._close_bars()
        self._folder = folder
        for plan in plans:
            render.print_note(
                f"{plan.suite}: {plan.question_count:,} samples in {len(plan.subjects)} "
                f"subjects, mode {plan.mode}, {plan.shots} shots"
            )
        if known:
            render.print_note(f"{len(known):,} of them are already evaluated")
        render.print_note(f"results are written to {folder}")
        self._total = sum(plan.question_count for plan in plans)
        self._done = self._before = len(known)
        self._correct, self._failed = sum(result.correct for result in known), 0
        self._started = self._last_line = time.monotonic()
        if not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bars = self._open.enter_context(
            render.live_bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f} / {task.total:.0f}"),
                TextColumn("{task.fields[score]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
        )
        self._task = self._bars.add_task("", total=self._total, completed=self._done, score="")

    def result(self, result: SampleResult) -> None:
        """Count the result of a sample."""
        self._done += 1
        self._correct += result.correct
        self._failed += bool(result.error)
        if self._bars is not None:
            where = f"{result.suite}/{result.subject}"
            self._bars.update(
                self._task, completed=self._done, description=where[:32], score=self._score()
            )
        elif time.monotonic() - self._last_line > _LINE_S:
            self._last_line = time.monotonic()
            spent = self._last_line - self._started
            left = spent / max(1, self._done - self._before) * (self._total - self._done)
            render.print_note(
                f"{self._done:,} of {self._total:,}: {self._score()}, "
                f"about {render.format_duration(left)} left"
            )
        if self._done >= self._total:
            self._close_bars()

    def stopped(self) -> None:
        """Print how to resume an interrupted evaluation."""
        self._close_bars()
        if self._folder is not None:
            answered, folder = self._done - self._failed, shlex.quote(str(self._folder))
            render.print_note(
                f"stopped: {answered:,} of {self._total:,} samples are evaluated; "
                f"the same command with --resume --output {folder} continues"
            )

    def _score(self) -> str:
        answered = self._done - self._failed
        share = f"{self._correct / answered:.1%} correct" if answered else ""
        return f"{share}, {self._failed} failed" if self._failed else share


def print_eval_report(report: EvalReport) -> None:
    """Print the scores; their settings and warnings go to stderr."""
    from llmctl.evaluation.results.table import COLUMNS, benchmark_rows, describe_setup

    rows = [row for suite in report.suites for row in benchmark_rows(suite)]
    render.print_table(COLUMNS, rows)
    for suite in report.suites:
        saved = (
            f"; {suite.tokens:,} tokens computed of {suite.naive_tokens:,}"
            if suite.tokens < suite.naive_tokens
            else ""
        )
        render.print_note(f"{suite.suite}: {describe_setup(suite)}{saved}")
        for warning in suite.warnings:
            render.print_note(f"warning: {suite.suite}: {warning}")
    settings = ", ".join(f"{name} {value}" for name, value in report.how.items())
    render.print_note(f"{settings}; {render.format_duration(report.seconds)}")
    render.print_note(f"results in {report.folder}")


def print_failed_samples(report: EvalReport) -> None:
    """Print how many samples failed, and how to evaluate them."""
    error, them = f"{report.failed} samples failed", "them"
    if report.too_long:
        error += f"; {report.too_long} of them do not fit the model's context"
        them = "the others"
    retry = f"--resume --output {report.folder} evaluates {them} again"
    can_retry = report.failed > report.too_long
    render.print_error(error, retry if can_retry else "use a model with a longer context")


def print_eval_comparison(
    found: Sequence[PairedComparison], flipped: Sequence[tuple[str, ...]]
) -> None:
    """Print paired differences, and the samples whose correctness changed."""
    render.print_table(
        ("SCOPE", "SAMPLES", "FIRST", "SECOND", "DIFFERENCE", "95 %", "GAINED", "LOST", "P"),
        [
            (
                one.scope if one.scope == one.suite else f"{one.suite}/{one.scope}",
                str(one.questions),
                f"{100 * one.first:.2f}",
                f"{100 * one.second:.2f}",
                f"{100 * (one.second - one.first):+.2f}",
                f"{100 * one.low:+.1f}..{100 * one.high:+.1f}",
                str(one.gained),
                str(one.lost),
                f"{one.p_value:.3g}",
            )
            for one in found
        ],
    )
    if flipped:
        render.print_heading("flipped")
        render.print_table(("SAMPLE", "TARGET", "FIRST", "SECOND", "NOW"), flipped)


def print_sample(sample: EvalSample | None, result: SampleResult) -> None:
    """Print a sample, the prediction and its verdict."""
    verdict = "failed" if result.error else "correct" if result.correct else "wrong"
    render.print_heading(f"{result.suite}/{result.subject}/{result.index}: {verdict}")
    if sample is not None:
        render.print_line(sample.prompt)
        if not sample.messages:
            ends = dict(zip(sample.labels, sample.continuations, strict=True))
            for label, end in ends.items():
                value = result.likelihoods.get(label)
                render.print_line(
                    f"  [{label}] {end.strip()}" + ("" if value is None else f"  {value:.6f}")
                )
    if result.reply is not None:
        render.print_line(f"reply: {result.reply}")
    facts = {"target": result.gold, "prediction": result.prediction or "-"}
    if result.robust is not None:
        facts["flexible extraction"] = f"{result.robust or '-'} ({result.rule})"
    if result.error:
        facts["error"] = result.error
    if result.truncated:
        facts["truncated"] = f"{result.shots} examples kept"
    render.print_fields(facts)
