"""Which columns does each format have, and which format has a row's columns?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.data.rows.json_text import json_type_name
from llmctl.data.rows.row_errors import RowErrorCollector, join_names
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a format, and other names under which people have it."""

    name: str
    others: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        return (self.name, *self.others)


@dataclass(frozen=True, slots=True)
class Format:
    """Which columns a format has."""

    needed: tuple[Column, ...]
    optional: tuple[Column, ...] = ()

    def columns(self) -> tuple[Column, ...]:
        return self.needed + self.optional


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
"""In the order in which a row is tried. `messages` and `sharegpt` have the same columns; what the
turns look like tells them apart."""


def validate_format_options(columns: Mapping[str, str] | None, format: str | None) -> None:
    """Refuse a mapping or a format that names what does not exist.

    Raises:
        ConfigError: with what was probably meant.
    """
    if format is not None and format not in FORMATS:
        near = did_you_mean(format, FORMATS, cutoff=0.8)
        raise ConfigError(
            f"there is no format {format!r}",
            hint=f"did you mean {near}?" if near else f"one of: {', '.join(FORMATS)}",
        )
    for ours in columns or ():
        known = {name for column in _all_columns() for name in column.names()}
        if ours not in known:
            near = did_you_mean(ours, known, cutoff=0.8)
            canonical = dict.fromkeys(column.name for column in _all_columns())
            raise ConfigError(
                f"--column {ours}: no format has such a column",
                hint=f"did you mean {near}?" if near else f"one of: {', '.join(canonical)}",
            )


def format_columns(format: str) -> set[str]:
    """Return every name under which a format's columns are read."""
    return {name for column in FORMATS[format].columns() for name in column.names()}


def detect_format(value: Mapping[str, object], collector: RowErrorCollector) -> str | None:
    """Return the format that has the row's columns, or note what would make it one."""
    # A CSV file of several formats has every column in every row, most of them empty.
    for present in (_filled, _present):
        for name, format in FORMATS.items():
            if all(present(column, value) for column in format.needed):
                return name
    nearest = max(
        FORMATS, key=lambda name: sum(_present(column, value) for column in FORMATS[name].needed)
    )
    if any(_present(column, value) for column in FORMATS[nearest].needed):
        report_missing_columns(nearest, value, collector)
    else:
        _note_unknown(value, collector)
    return None


def report_missing_columns(
    format: str, value: Mapping[str, object], collector: RowErrorCollector
) -> bool:
    """Note each needed column that a row has not; return whether it lacks any."""
    missing = [column for column in FORMATS[format].needed if not _present(column, value)]
    for column in missing:
        null = next((name for name in column.names() if name in value), None)
        if null is not None:
            fix = "a list of turns" if column is _TURNS else "text"
            collector.add("wrong-type", (null,), json_type_name(value[null]), fix)
            continue
        strange = [name for name in value if name not in format_columns(format)]
        near = next(
            filter(None, (did_you_mean(name, strange, cutoff=_CLOSE) for name in column.names())),
            None,
        )
        if near is not None:
            fix = f"rename it, or --column {column.name}={near}"
            collector.add("missing-column", (column.name,), f"missing; did you mean {near!r}?", fix)
        else:
            collector.add(
                "missing-column",
                (column.name,),
                f"missing; the row has {join_names(value)}",
                f"name the column that holds it: --column {column.name}=YOURS",
            )
    return bool(missing)


def _note_unknown(value: Mapping[str, object], collector: RowErrorCollector) -> None:
    if not value:
        collector.add("unknown-format", (), "the row is empty", _FORMS)
        return
    objects = [name for name, item in value.items() if _are_objects(item)]
    turns = next((name for name in objects if _are_turns(value[name])), None)
    rows = next((name for name in objects if not _are_turns(value[name])), None)
    if len(value) <= 4 and rows is not None:
        collector.add(
            "unknown-format", (rows,), "the rows are in here", "save this list as the file"
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
    collector.add(
        "unknown-format", (), f"no known format has the columns {join_names(value)}", _FORMS
    )


_CLOSE = 0.85
"""`question_id` is no misspelt `question`."""
_FORMS = (
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
