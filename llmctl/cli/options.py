"""Options that several commands share, beside those of their config dataclass."""

from typing import Annotated, Any

import typer

from llmctl.cli.config_options import ConfigFileOpt, LongConfigFileOpt, given_fields
from llmctl.config.model import LOAD_OPTIONS
from llmctl.config.settings import ResolvedConfig
from llmctl.errors import ConfigError

__all__ = ["ConfigFileOpt", "LongConfigFileOpt"]

PickleOpt = Annotated[
    bool, typer.Option("--allow-pickle", help="Also load .bin weights, which can run code.")
]
TrackingUriOpt = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="Tracking store: http://HOST:PORT or sqlite:///FILE.db.  "
        "[default: $MLFLOW_TRACKING_URI, else SQLite in llmctl's home folder]",
    ),
]
NoTrackOpt = Annotated[
    bool, typer.Option("--no-track", help="Do not record the run in the tracking store.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def reject_load_options(config: ResolvedConfig[Any]) -> None:
    """Raise `ConfigError` for options of a model in this process, which a server ignores."""
    if names := sorted(given_fields(config) & LOAD_OPTIONS):
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        raise ConfigError(f"{options}: only the server at --base-url can choose that")
