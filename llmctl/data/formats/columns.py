"""The columns of each dataset format, and the detection of a row's format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.data.rows.json_text import json_type_name
from llmctl.data.rows.row_errors import RowErrorCollector, join_names
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a format, with the other names it has in public datasets."""

    name: str
    aliases: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Format:
    """The columns of one format."""

    required: tuple[Column, ...]
    optional: tuple[Column, ...] = ()

    def columns(self) -> tuple[Column, ...]:
        return self.required + self.optional


_TOOLS = Column("tools", ("functions",))
_SYSTEM = Column("system", ("system_prompt",))
_ANSWERS = ("response", "answer")
_TURNS = Column("messages", ("conversations", "conversation"))

FORMATS: dict[str, Format] = {
    "preference": Format(
        (Column("chosen"), Column("rejected")),
        (
            Column("prompt", ("question", "query")),
            Column("instruction"),
            Column("input"),
            Column("history"),
            _TURNS,
            _SYSTEM,
            _TOOLS,
        ),
    ),
    "messages": Format((_TURNS,), (_SYSTEM, _TOOLS)),
    "sharegpt": Format((_TURNS,), (_SYSTEM, _TOOLS)),
    "alpaca": Format(
        (Column("instruction"), Column("output", (*_ANSWERS, "completion"))),
        (Column("input", ("context",)), Column("history"), _SYSTEM),
    ),
    "prompt-completion": Format(
        (
            Column("prompt", ("question", "query", "input")),
            Column("completion", (*_ANSWERS, "output", "target")),
        ),
        (_SYSTEM, _TOOLS),
    ),
    "text": Format((Column("text"),)),
}
"""In detection order. `messages` and `sharegpt` have the same columns and differ in the keys of
their turns."""


def validate_format_options(columns: Mapping[str, str] | None, format: str | None) -> None:
    """Check that a column mapping and a format name existing columns and formats.

    Raises:
        ConfigError: they do not; the hint suggests a name.
    """
    if format is not None and format not in FORMATS:
        near = did_you_mean(format, FORMATS, cutoff=0.8)
        raise ConfigError(
            f"unknown format {format!r}",
            hint=f"did you mean {near}?" if near else f"one of: {', '.join(FORMATS)}",
        )
    for name in columns or ():
        known = {alias for column in _all_columns() for alias in column.names()}
        if name not in known:
            near = did_you_mean(name, known, cutoff=0.8)
            canonical = dict.fromkeys(column.name for column in _all_columns())
            raise ConfigError(
                f"--column {name}: no format has such a column",
                hint=f"did you mean {near}?" if near else f"one of: {', '.join(canonical)}",
            )


def format_columns(format: str) -> set[str]:
    """Return every name of a format's columns, aliases included."""
    return {name for column in FORMATS[format].columns() for name in column.names()}


def detect_format(value: Mapping[str, object], collector: RowErrorCollector) -> str | None:
    """Return the format whose columns the row has; `None` with an error if there is none."""
    # In a CSV file of several formats every row has all columns, most of them empty.
    for present in (_filled, _present):
        for name, format in FORMATS.items():
            if all(present(column, value) for column in format.required):
                return name
    nearest = max(
        FORMATS, key=lambda name: sum(_present(column, value) for column in FORMATS[name].required)
    )
    if any(_present(column, value) for column in FORMATS[nearest].required):
        report_missing_columns(nearest, value, collector)
    else:
        _report_unknown_format(value, collector)
    return None


def report_missing_columns(
    format: str, value: Mapping[str, object], collector: RowErrorCollector
) -> bool:
    """Add an error for each required column that a row lacks; return whether there are any."""
    missing = [column for column in FORMATS[format].required if not _present(column, value)]
    for column in missing:
        null = next((name for name in column.names() if name in value), None)
        if null is not None:
            fix = "a list of turns" if column is _TURNS else "a string"
            collector.add("wrong-type", (null,), json_type_name(value[null]), fix)
            continue
        unknown = [name for name in value if name not in format_columns(format)]
        suggestions = (did_you_mean(name, unknown, cutoff=_CLOSE) for name in column.names())
        near = next(filter(None, suggestions), None)
        if near is not None:
            fix = f"rename it, or --column {column.name}={near}"
            collector.add("missing-column", (column.name,), f"missing; did you mean {near!r}?", fix)
        else:
            collector.add(
                "missing-column",
                (column.name,),
                f"missing; the row has {join_names(value)}",
                f"name the column to use: --column {column.name}=YOURS",
            )
    return bool(missing)


def _report_unknown_format(value: Mapping[str, object], collector: RowErrorCollector) -> None:
    if not value:
        collector.add("unknown-format", (), "the row is empty", _KNOWN_FORMATS)
        return
    objects = [name for name, item in value.items() if _are_objects(item)]
    turns = next((name for name in objects if _are_turns(value[name])), None)
    rows = next((name for name in objects if not _are_turns(value[name])), None)
    if len(value) <= 4 and rows is not None:
        collector.add(
            "unknown-format", (rows,), "this column holds the rows", "save this list as the file"
        )
        return
    known = {name: column.name for column in _all_columns() for name in column.names()}
    for name in value:
        near = did_you_mean(name, known, cutoff=_CLOSE)
        if near is not None:
            fix = f"rename it, or --column {known[near]}={name}"
            collector.add("unknown-column", (name,), f"unknown; did you mean {near!r}?", fix)
            return
    if turns is not None:
        fix = f"rename it, or --column messages={turns}"
        collector.add("unknown-column", (turns,), "unknown; did you mean 'messages'?", fix)
        return
    what = f"no known format has the columns {join_names(value)}"
    table = ", in the first row of the file" if collector.is_table else ""
    collector.add("unknown-format", (), what, _KNOWN_FORMATS + table)


_CLOSE = 0.85
"""High enough that `question_id` is not taken for a misspelt `question`."""
_KNOWN_FORMATS = (
    "messages | instruction + output | prompt + completion | chosen + rejected | text, "
    "or --column NAME=YOURS"
)


def _present(column: Column, value: Mapping[str, object]) -> bool:
    # Arrow fills columns that a row does not have with null.
    return any(value.get(name) is not None for name in column.names())


def _filled(column: Column, value: Mapping[str, object]) -> bool:
    return any(value.get(name) not in (None, "") for name in column.names())


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _are_turns(objects: Any) -> bool:
    return all("role" in item or "from" in item for item in objects)


def _all_columns() -> Iterator[Column]:
    for format in FORMATS.values():
        yield from format.columns()
