"""The only place that prints. Results go to stdout, everything else to stderr."""

import json
import math
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer

from llmctl.errors import ConfigError
from llmctl.types import EngineInfo, Progress, ProgressCallback

_NARROWEST = 6
"""Columns of text that a cell which may be cut keeps."""


def print_error(message: str, hint: str = "") -> None:
    """Say what failed and what to do about it."""
    typer.secho(f"error: {message}", fg="red", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)


def print_note(text: str) -> None:
    """Tell a person something that is no result."""
    typer.echo(text, err=True)


def print_engine_summary(info: EngineInfo) -> None:
    """Say in a line what is loaded, and what should be known of it."""
    for told in engine_summary_lines(info):
        print_note(told)


def engine_summary_lines(info: EngineInfo) -> list[str]:
    """Return what `print_engine_summary` says."""
    if not info.parameter_count:  # other people's
        context = f", context {info.context_length:,} tokens" if info.context_length else ""
        return [f"{info.model_id} at {info.device}{context}"]
    quant = "" if info.quant == "none" else f", {info.quant}"
    return [
        f"{info.model_id}: {info.parameter_count / 1e6:,.0f} M parameters, {info.dtype}{quant} "
        f"on {info.device}, {format_bytes(info.weight_bytes)}, "
        f"context {info.context_length:,} tokens",
        *(f"note: {line}" for line in info.notes),
    ]


def reply_text(text: str) -> None:
    """Write a piece of a reply as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def is_terminal() -> bool:
    """Whether results go to a person's terminal."""
    return sys.stdout.isatty()


def print_line(text: str) -> None:
    """Print a line of a result."""
    typer.echo(text)


def print_heading(text: str) -> None:
    """Begin a part of a longer result."""
    typer.echo()
    typer.secho(text, bold=True)


def confirm(question: str, *, unless: str) -> None:
    """Ask before what cannot be undone; raise `typer.Abort` for a no.

    Raises:
        ConfigError: nobody is there to ask; `unless` is the option that makes asking needless.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            f"this needs a yes, and nobody is there to ask: {question}", hint=f"add {unless}"
        )
    typer.confirm(question, abort=True, err=True)


def print_json(value: object) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, cut: Collection[str] = ()
) -> None:
    """Print a table: drawn for a terminal, tab-separated for a program.

    Columns named in `cut` are shortened where a terminal is too narrow, so that a row stays a line;
    without any, cells are broken into several lines.
    """
    if not is_terminal():
        for row in rows:
            typer.echo("\t".join(_one_line(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    # What a person named is text, whatever brackets it has.
    console = Console(markup=False, emoji=False, highlight=False)
    gap = 2
    if cut:
        gap, widths = _fitted(columns, rows, cut, console.width)
        rows = [
            [shorten(_one_line(cell), width) for cell, width in zip(row, widths, strict=True)]
            for row in rows
        ]
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        drawn.add_column(column, no_wrap=bool(cut), overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


def shorten(text: str, width: int | None = None) -> str:
    """Return a text with its middle cut out if it is wider than so many columns.

    Chinese characters are two columns wide. Without `width` it is the terminal's, and nothing is
    cut where there is none.
    """
    if width is None:
        if not is_terminal():
            return text
        width = shutil.get_terminal_size().columns
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    head = set_cell_size(text, width - 1 - tail).rstrip()
    return f"{head}…{set_cell_size(text[::-1], tail).rstrip()[::-1]}"


def _one_line(cell: str) -> str:
    return " ".join(cell.split()) if any(mark in cell for mark in "\n\r\t") else cell


def _fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], cut: Collection[str], room: int
) -> tuple[int, list[int]]:
    """Return the gap between columns and their widths: the widest of those to cut gives first."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= room else 1
    excess = sum(widths) + gap * (len(widths) - 1) - room
    while excess > 0:
        index = max((i for i, name in enumerate(columns) if name in cut), key=widths.__getitem__)
        if widths[index] <= _NARROWEST:
            break
        widths[index] -= 1
        excess -= 1
    return gap, widths


def print_fields(values: Mapping[str, str]) -> None:
    """Print names and values below each other."""
    width = max(map(len, values))
    for name, value in values.items():
        typer.echo(f"{name:<{width}}  {value}")


def format_bytes(count: float) -> str:
    """Write bytes as disks and downloads are labelled, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def format_number(value: float) -> str:
    """Write a figure with four digits that count, whole ones with all of theirs."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e12:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.3e}"


def format_duration(seconds: float) -> str:
    """Write a time span in at most seven characters."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 100 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def format_timestamp(seconds: float) -> str:
    """Write Unix seconds in local time."""
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def format_day(seconds: float) -> str:
    """Write Unix seconds for a narrow column: the time if it was today, else the day.

    A program gets the whole of it.
    """
    if not is_terminal():
        return format_timestamp(seconds)
    at, now = datetime.fromtimestamp(seconds), datetime.now()
    if at.date() == now.date():
        return at.strftime("%H:%M")
    return at.strftime("%m-%d" if at.year == now.year else "%Y-%m-%d")


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield what long work reports to: a live bar on a terminal, a line per stage elsewhere."""
    if not sys.stderr.isatty():
        yield _StageLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        yield _LiveBar(bars)


class _StageLines:
    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, report: Progress) -> None:
        if report.stage != self._stage:
            self._stage = report.stage
            print_note(report.stage)


class _LiveBar:
    """One bar per stage; a stage that is over stays above with its time."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._stage = ""
        self._task: Any = None

    def __call__(self, report: Progress) -> None:
        if report.stage != self._stage:
            if self._task is not None:
                self._bars.update(self._task, total=1, completed=1)
                self._bars.stop_task(self._task)
            self._stage = report.stage
            self._task = self._bars.add_task(report.stage, total=None, amount="")
        if report.done is None:
            return
        amount = format_bytes(report.done) if report.unit == "B" else f"{report.done:.0f}"
        if report.total:
            whole = format_bytes(report.total) if report.unit == "B" else f"{report.total:.0f}"
            amount = f"{amount} / {whole}"
        self._bars.update(self._task, total=report.total, completed=report.done, amount=amount)
