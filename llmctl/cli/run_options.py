"""Options and arguments that several `llmctl runs` commands share."""

from pathlib import Path
from typing import Annotated

import typer

from llmctl.types import RunKind, RunStatus

RunArg = Annotated[
    str, typer.Argument(metavar="RUN", help="Id or name, a prefix of either, or `latest`.")
]
RunsArg = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Ids or names, prefixes of either, or `latest`."),
]
KindOpt = Annotated[RunKind | None, typer.Option("--kind", "-k", help="Only runs of this kind.")]
ModelOpt = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Only runs with this text in the name of the model."),
]
StatusOpt = Annotated[
    RunStatus | None, typer.Option("--status", help="Only runs with this status.")
]
SinceOpt = Annotated[
    str | None, typer.Option("--since", help="Started within 2h, 7d, 1w, or since 2026-05-31.")
]
PlotOpt = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.png", help="Draw the metrics into this file."),
]
