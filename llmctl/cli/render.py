"""Output of all commands: results go to stdout, everything else to stderr.

Only this module prints, and for the chat REPL `repl/display.py` and `repl/terminal.py`.
"""

import json
import math
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from llmctl.errors import ConfigError
from llmctl.types import EngineInfo, Progress, ProgressCallback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn
    from rich.text import Text

_NARROWEST = 6
"""Minimum width of a shortened cell, in columns."""


def print_error(message: str, hint: str = "") -> None:
    """Print an error and its hint to stderr."""
    typer.secho(f"error: {message}", fg="red", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)


def print_note(text: str) -> None:
    """Print a line that is not a result, to stderr."""
    typer.echo(text, err=True)


def print_engine_summary(info: EngineInfo) -> None:
    """Print the loaded model and its notes to stderr."""
    for text in engine_summary_lines(info):
        print_note(text)


def engine_summary_lines(info: EngineInfo) -> list[str]:
    """Return the lines of `print_engine_summary`."""
    if not info.parameter_count:  # a model on a server
        context = f", context {info.context_length:,} tokens" if info.context_length else ""
        return [f"{info.model_id} at {info.device}{context}"]
    quant = "" if info.quant == "none" else f", {info.quant}"
    return [
        f"{info.model_id}: {info.parameter_count / 1e6:,.0f} M parameters, {info.dtype}{quant} "
        f"on {info.device}, {format_bytes(info.weight_bytes)}, "
        f"context {info.context_length:,} tokens",
        *_path_lines(info),
        *(f"note: {line}" for line in info.notes),
    ]


def _path_lines(info: EngineInfo) -> list[str]:
    """Return how the model runs; for a serial model its notes say so."""
    if info.execution_path in (None, "serial"):
        return []
    return [f"runs {info.execution_path}: {info.execution_reason}"]


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def print_line(text: str = "") -> None:
    """Print a line of a result."""
    typer.echo(text)


def print_help(context: typer.Context) -> None:
    """Print the help text of a command."""
    typer.echo(context.get_help())


def print_heading(text: str) -> None:
    """Print the heading of a section of a result."""
    typer.echo()
    typer.secho(text, bold=True)


def confirm(question: str, *, unless: str) -> None:
    """Ask the user to confirm an action that cannot be undone.

    Args:
        unless: option that skips the question.

    Raises:
        typer.Abort: the answer is no.
        ConfigError: stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            f"confirmation needs a terminal: {question}",
            hint=f"add {unless}",
        )
    typer.confirm(question, abort=True, err=True)


def print_json(value: object) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, cut: Collection[str] = ()
) -> None:
    """Print a table: aligned on a terminal, tab-separated and without a header elsewhere.

    Args:
        cut: columns to shorten on a narrow terminal, so that each row fits on a line. Without any,
            cells are wrapped.
    """
    if not is_terminal():
        for row in rows:
            typer.echo("\t".join(_one_line(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    # Names may contain brackets, which are not markup.
    console = Console(markup=False, emoji=False, highlight=False)
    gap = 2
    if cut:
        gap, widths = _fit_columns(columns, rows, cut, console.width)
        rows = [
            [shorten(_one_line(cell), width) for cell, width in zip(row, widths, strict=True)]
            for row in rows
        ]
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        grid.add_column(column, no_wrap=bool(cut), overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def shorten(text: str, width: int | None = None) -> str:
    """Return a text with its middle replaced by an ellipsis if it is wider than `width`.

    Args:
        width: in columns, two per Chinese character. `None` is the width of the terminal; without a
            terminal the text is returned unchanged.
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


def _fit_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], cut: Collection[str], available: int
) -> tuple[int, list[int]]:
    """Return the gap between columns and their widths; the widest `cut` columns shrink first."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= available else 1
    excess = sum(widths) + gap * (len(widths) - 1) - available
    while excess > 0:
        index = max((i for i, name in enumerate(columns) if name in cut), key=widths.__getitem__)
        if widths[index] <= _NARROWEST:
            break
        widths[index] -= 1
        excess -= 1
    return gap, widths


def print_fields(values: Mapping[str, str]) -> None:
    """Print names and values, one pair per line."""
    width = max(map(len, values))
    for name, value in values.items():
        typer.echo(f"{name:<{width}}  {value}")


def format_bytes(count: float) -> str:
    """Return a number of bytes in decimal units, such as `1.5 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def format_number(value: float) -> str:
    """Return a number with four significant digits, and an integer with all of its digits."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e12:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.3e}"


def format_duration(seconds: float) -> str:
    """Return a duration in at most seven characters."""
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
    """Return Unix seconds as local date and time."""
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def format_day(seconds: float) -> str:
    """Return Unix seconds for a narrow column: the time if it is today, else the date.

    Without a terminal date and time are returned.
    """
    if not is_terminal():
        return format_timestamp(seconds)
    at, now = datetime.fromtimestamp(seconds), datetime.now()
    if at.date() == now.date():
        return at.strftime("%H:%M")
    return at.strftime("%m-%d" if at.year == now.year else "%Y-%m-%d")


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a progress callback: a live bar on a terminal, one line per stage elsewhere."""
    if not sys.stderr.isatty():
        yield _StageLines()
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with live_bars(*columns) as bars:
        yield _LiveBar(bars)


def live_bars(*columns: "ProgressColumn") -> "Bars":
    """Return Rich progress bars on stderr, which vanish at their end."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    return Bars(*columns, console=Console(stderr=True), transient=True)


def print_above(bars: "Bars", text: str) -> None:
    """Print a line above progress bars."""
    bars.console.print(text, markup=False, highlight=False)


def color_console() -> "Console | None":
    """Return a console on stdout, or `None` if it is not a terminal with colours."""
    if not is_terminal():
        return None
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.color_system and not console.no_color else None


def print_styled(console: "Console", text: "Text") -> None:
    """Print styled text of a result, wrapped by the terminal."""
    console.print(text, soft_wrap=True)


class _StageLines:
    """Prints each stage of a progress once."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, report: Progress) -> None:
        if report.stage != self._stage:
            self._stage = report.stage
            print_note(report.stage)


class _LiveBar:
    """Shows one bar per stage; a finished stage stays visible with its time."""

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
            total = format_bytes(report.total) if report.unit == "B" else f"{report.total:.0f}"
            amount = f"{amount} / {total}"
        self._bars.update(self._task, total=report.total, completed=report.done, amount=amount)
