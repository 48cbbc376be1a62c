"""The only place that prints. Results go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from llmctl.types import EngineInfo, Progress, ProgressCallback


def show_error(message: str, hint: str = "") -> None:
    """Say what failed and what to do about it."""
    typer.secho(f"error: {message}", fg="red", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)


def note(text: str) -> None:
    """Tell a person something that is no result."""
    typer.echo(text, err=True)


def engine_summary(info: EngineInfo) -> None:
    """Say in a line what is loaded, and what should be known of it."""
    quant = "" if info.quant == "none" else f", {info.quant}"
    note(
        f"{info.model_id}: {info.parameter_count / 1e6:,.0f} M parameters, {info.dtype}{quant} "
        f"on {info.device}, {file_size(info.weight_bytes)}, context {info.context_length:,} tokens"
    )
    for line in info.notes:
        note(f"note: {line}")


def reply_text(text: str) -> None:
    """Write a piece of a reply as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def as_json(value: object) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn for a terminal, tab-separated for a program."""
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


def fields(values: Mapping[str, str]) -> None:
    """Print names and values below each other."""
    width = max(map(len, values))
    for name, value in values.items():
        typer.echo(f"{name:<{width}}  {value}")


def file_size(count: float) -> str:
    """Write bytes as disks and downloads are labelled, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextmanager
def progress() -> Iterator[ProgressCallback]:
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
            note(report.stage)


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
        amount = file_size(report.done) if report.unit == "B" else f"{report.done:.0f}"
        if report.total:
            whole = file_size(report.total) if report.unit == "B" else f"{report.total:.0f}"
            amount = f"{amount} / {whole}"
        self._bars.update(self._task, total=report.total, completed=report.done, amount=amount)
