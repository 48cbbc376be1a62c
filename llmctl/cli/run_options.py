"""The options and arguments that several of the commands of `llmctl runs` have."""

from pathlib import Path
from typing import Annotated

import typer

from llmctl.types import RunKind, RunStatus

RunArg = Annotated[
    str, typer.Argument(metavar="RUN", help="Id, name, the beginning of either, or `latest`.")
]
RunsArg = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Ids, names, their beginnings, or `latest`.")
]
KindOpt = Annotated[RunKind | None, typer.Option("--kind", "-k", help="Only runs of this kind.")]
ModelOpt = Annotated[
    str | None, typer.Option("--model", "-m", help="Only runs whose model's name has this in it.")
]
StatusOpt = Annotated[RunStatus | None, typer.Option("--status", help="Only runs in this state.")]
SinceOpt = Annotated[
    str | None, typer.Option("--since", help="Started within 2h, 7d, 1w, or since 2026-05-31.")
]
PictureOpt = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE.png", help="Draw the curves.")
]
