"""How the data commands read rows: their argument, and their config as reader options."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmctl.config.data import ReadConfig
from llmctl.errors import ConfigError

if TYPE_CHECKING:
    from llmctl.data.io.validating_reader import ReadOptions

FilesArg = Annotated[
    list[str],
    typer.Argument(
        help="JSON, JSONL, CSV, Parquet or text files (also .gz), folders, or hub ids "
        "(owner/name[:split]).",
        metavar="FILE",
    ),
]


def read_options(
    config: ReadConfig, *, on_error: Literal["fail", "skip"] = "fail", keep_all: bool = False
) -> "ReadOptions":
    """Return the options of the reader.

    Args:
        keep_all: keep all row errors, as with --all.

    Raises:
        ConfigError: two columns have the same name.
    """
    from llmctl.data.io.validating_reader import ReadOptions

    if len(set(config.column.values())) < len(config.column):
        raise ConfigError("--column: the same column is given twice")
    limit = None if keep_all else config.max_kept_errors
    return ReadOptions(config.column, config.format, on_error, limit)
