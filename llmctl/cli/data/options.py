"""The options that the commands on data share."""

from typing import Annotated, Literal

import typer

from llmctl.errors import ConfigError

FilesArg = Annotated[
    list[str],
    typer.Argument(
        help="JSON, JSONL, CSV, Parquet or text files (also .gz), folders, or hub ids "
        "(owner/name[:split]).",
        metavar="FILE",
    ),
]
ColumnOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=YOURS",
        help="A column that your files call otherwise, such as output=reply; may be repeated.",
    ),
]
FormatOpt = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="The format of every row: alpaca, sharegpt, messages, prompt-completion, preference "
        "or text.  [default: recognised row by row]",
    ),
]
OnErrorOpt = Annotated[
    Literal["fail", "skip"],
    typer.Option("--on-error", help="Write nothing if a row is wrong, or leave such rows out."),
]
OverwriteOpt = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that are there already.")
]
AllOpt = Annotated[bool, typer.Option("--all", help="Print every problem, not the first few.")]


def column_names(given: list[str] | None) -> dict[str, str]:
    """Read `NAME=YOURS`.

    Raises:
        ConfigError: it is not of this form, or a name is there twice.
    """
    columns: dict[str, str] = {}
    for text in given or ():
        ours, sign, theirs = (part.strip() for part in text.partition("="))
        if not (ours and sign and theirs):
            raise ConfigError(
                f"--column {text} is no pair of names",
                hint="our name, then yours: --column output=reply",
            )
        if ours in columns or theirs in columns.values():
            raise ConfigError(f"--column {text}: this column is given twice")
        columns[ours] = theirs
    return columns
