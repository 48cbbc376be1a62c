"""Strict JSON parsing of one row, with errors that a user can act on."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FieldPath = tuple[str | int, ...]
"""The path to a value inside a row: `("messages", 2, "role")`."""


@dataclass(frozen=True, slots=True)
class ParseError:
    """One error in the text of a row, with the fields of `RowError`. A value, not an exception."""

    kind: str
    what: str
    fix: str
    field: str
    line: int = 0
    """Number of lines below the first line of the text."""


class _DuplicateKeyObject(dict[str, Any]):
    """A JSON object with a duplicate key."""

    key = ""


def format_field_path(path: FieldPath) -> str:
    """Write a path as text: `messages[2].role`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse_json(raw: bytes) -> tuple[Any, tuple[ParseError, ...]]:
    """Parse JSON without duplicate keys, NaN, infinities or text that is not Unicode.

    Returns:
        the value and no errors; `None` and the syntax error; or a value that parses but must not be
        used, and all errors in it.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return None, (invalid_utf8(raw, error),)
    invalid = False

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal invalid
        value = dict(pairs)
        if len(value) != len(pairs):
            invalid = True
            names = [name for name, _ in pairs]
            value = _DuplicateKeyObject(value)
            value.key = next(name for name in names if names.count(name) > 1)
        return value

    def make_number(digits: str) -> float:
        nonlocal invalid
        value = float(digits)
        invalid = invalid or not math.isfinite(value)
        return value

    try:
        value = json.loads(
            text, object_pairs_hook=make_object, parse_constant=make_number, parse_float=make_number
        )
        # An escaped unpaired surrogate parses, but cannot be encoded later.
        return value, tuple(_invalid_values(value, (), text)) if invalid or "\\u" in text else ()
    except json.JSONDecodeError as error:
        return None, (_syntax_error(error.msg, error.pos, text),)
    except RecursionError:
        return None, (ParseError("json", "brackets are nested too deep", "fewer levels", ""),)
    except ValueError:
        return None, (
            ParseError("json", "a number with thousands of digits", "a shorter number", ""),
        )


def invalid_utf8(raw: bytes, error: UnicodeDecodeError) -> ParseError:
    """Return the error for text that is not UTF-8, with the encoding it seems to have."""
    line_start = raw.rfind(b"\n", 0, error.start) + 1
    column = len(raw[line_start : error.start].decode(errors="replace")) + 1
    fix = "save the file as UTF-8"
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        pass
    else:
        if any("\u4e00" <= char <= "\u9fff" for char in text):
            fix = "the text looks like GB18030: save the file as UTF-8"
    byte = raw[error.start]
    return ParseError(
        "utf8",
        # 0xFF stands for what is invalid in a file of another encoding.
        f"the byte 0x{byte:02x} is not valid UTF-8" if byte != 0xFF else "bytes that are no text",
        fix,
        f"column {column}",
        raw.count(b"\n", 0, error.start),
    )


def json_type_name(value: object) -> str:
    """Return the name of a JSON value's type for error messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case dict():
            return "an object"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def line_offset(text: str, path: FieldPath) -> int:
    """Return the line, counted from 0, on which a value of an indented JSON text begins.

    A path that the text does not have ends at its last existing value.
    """
    scan = json.JSONDecoder().raw_decode
    at = here = _blank(text, 0)
    for step in path:
        opener, at, index = text[at : at + 1], _blank(text, at + 1), 0
        if opener != ("[" if isinstance(step, int) else "{"):
            break
        while text[at] not in "]}":
            name: object = index
            here_now = at
            if opener == "{":
                name, at = scan(text, at)
                at = _blank(text, _blank(text, at) + 1)  # over the colon
            if name == step:
                here = here_now
                break
            at = _blank(text, scan(text, at)[1])
            if text[at] == ",":
                at, index = _blank(text, at + 1), index + 1
        else:
            break
    return text.count("\n", 0, here)


def _blank(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _invalid_values(value: Any, path: FieldPath, text: str) -> Iterator[ParseError]:
    """Yield an error for each value that `json.loads` accepts but JSON or Unicode does not."""

    def error(kind: str, path: FieldPath, what: str, fix: str) -> ParseError:
        line = line_offset(text, path) if "\n" in text else 0
        return ParseError(kind, what, fix, format_field_path(path), line)

    match value:
        case dict():
            if isinstance(value, _DuplicateKeyObject):
                yield error(
                    "duplicate-key",
                    (*path, value.key),
                    f"duplicate key {value.key!r}",
                    "each key once",
                )
            for key, item in value.items():
                if _unpaired_surrogate(key) is not None:
                    yield error(
                        "surrogate", path, "a key has an unpaired surrogate", "valid Unicode"
                    )
                else:
                    yield from _invalid_values(item, (*path, key), text)
        case list():
            for index, item in enumerate(value):
                yield from _invalid_values(item, (*path, index), text)
        case float() if not math.isfinite(value):
            name = "NaN" if math.isnan(value) else "an infinite number"
            yield error("nan", path, f"{name} is not valid JSON", "null, or leave the field out")
        case str() if (at := _unpaired_surrogate(value)) is not None:
            yield error(
                "surrogate",
                path,
                f"an unpaired surrogate at character {at + 1}",
                "both surrogates, or the character itself",
            )


def _unpaired_surrogate(text: str) -> int | None:
    """Return the index of the first unpaired surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


_TRUNCATED = "or is the row truncated?"
_CONTROL_NAMES = {
    "\n": ("line feed", r"\n"),
    "\t": ("tab", r"\t"),
    "\r": ("carriage return", r"\r"),
}


def _syntax_error(message: str, at: int, text: str) -> ParseError:
    """Return the error for a message of Python's JSON parser, which differs between versions."""
    if text[:at].rstrip().endswith(",") and text[at:].lstrip().startswith(("}", "]")):
        at = text.rindex(",", 0, at)  # where Python 3.13 points
    what, fix = _describe(message, at, text)
    kind = "half-row" if what.startswith("the row ends") else "json"
    line_start = text.rfind("\n", 0, at) + 1
    return ParseError(kind, what, fix, f"column {at - line_start + 1}", text.count("\n", 0, at))


def _describe(message: str, at: int, text: str) -> tuple[str, str]:
    rest = text[at:].lstrip()
    first = rest[:1]
    if message.startswith("Unterminated string"):
        return "the row ends inside the string that begins here", f"a closing quote; {_TRUNCATED}"
    if not first:
        return "the row ends before it is complete", f"a closing bracket; {_TRUNCATED}"
    if message.startswith("Invalid control character"):
        name, escape = _CONTROL_NAMES.get(
            text[at], (f"control character U+{ord(text[at]):04X}", f"\\u{ord(text[at]):04x}")
        )
        return f"an unescaped {name} in a string", f"write {escape}"
    if message.startswith("Invalid \\escape"):
        return (
            f"{text[at : at + 2]} is not a JSON escape",
            "two backslashes for one backslash",
        )
    if message.startswith("Invalid \\u"):
        return r"a \u escape without four hex digits", r"\u4e2d, or the character itself"
    before = text[:at].rstrip()[-1:]
    if first == ",":
        if message.startswith("Extra data"):
            return "a comma after the row's end", "one object per line, no commas between"
        return "a trailing or repeated comma", "remove it"
    if first == "'":
        return "single quotes", 'double quotes: "text"'
    if message.startswith("Extra data"):
        if first == "{":
            return "a second object on the same line", "one object per line"
        return "text after the row's end", "one object per line and nothing else"
    word = rest.split(",")[0].split("}")[0].split("]")[0].split(":")[0].strip()
    for python, json_word in (("True", "true"), ("False", "false"), ("None", "null")):
        if word == python:
            return f"{python} is Python, not JSON", json_word
    if message.startswith("Expecting property name"):
        return f"a key without double quotes: {_short(word)}", f'"{_short(word)}"'
    if message.startswith("Expecting ':'"):
        return f"no colon between key and value: {_short(rest)}", '"key": value'
    if message.startswith("Expecting ','"):
        if before == '"' and first != '"':
            return f"a string ends here, followed by {_short(rest)}", r"a comma; or \" for a quote"
        return f"no comma before {_short(rest)}", "add a comma"
    return f"not a JSON value: {_short(rest)}", 'strings need double quotes: "text"'


def _short(text: str) -> str:
    text = text.split("\n")[0]
    return text if len(text) <= 20 else text[:20] + "…"
