"""What does the JSON of one row say, and if it is none, what is wrong with it in plain words?"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FieldPath = tuple[str | int, ...]
"""The path to a value inside a row: `("messages", 2, "role")`."""


@dataclass(frozen=True, slots=True)
class ParseError:
    """What is wrong with a text; a `RowError` that does not know its file yet."""

    kind: str
    what: str
    fix: str
    field: str
    line: int = 0
    """Lines below the text's first."""


class _Twice(dict[str, Any]):
    """An object with a key that is there twice."""

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
        the value and no fault; `None` and the fault that keeps the text from being JSON; or a value
        that can be parsed but should not be used, and all that is wrong with it.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return None, (invalid_utf8(raw, error),)
    odd = False

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal odd
        value = dict(pairs)
        if len(value) != len(pairs):
            odd = True
            names = [name for name, _ in pairs]
            value = _Twice(value)
            value.key = next(name for name in names if names.count(name) > 1)
        return value

    def number(digits: str) -> float:
        nonlocal odd
        value = float(digits)
        odd = odd or not math.isfinite(value)
        return value

    try:
        value = json.loads(text, object_pairs_hook=make, parse_constant=number, parse_float=number)
        # An escaped half of a surrogate pair parses, and breaks whoever encodes it later.
        return value, tuple(_oddities(value, (), text)) if odd or "\\u" in text else ()
    except json.JSONDecodeError as error:
        return None, (_explain(error.msg, error.pos, text),)
    except RecursionError:
        return None, (ParseError("json", "brackets are nested too deep to read", "a flat row", ""),)
    except ValueError:
        return None, (ParseError("json", "a number of thousands of digits", "a shorter one", ""),)


def invalid_utf8(raw: bytes, error: UnicodeDecodeError) -> ParseError:
    """Say which byte is no UTF-8, and what the text seems to be in its place."""
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
    return ParseError(
        "utf8",
        f"the byte 0x{raw[error.start]:02x} is no UTF-8",
        fix,
        f"column {column}",
        raw.count(b"\n", 0, error.start),
    )


def json_type_name(value: object) -> str:
    """Name the type of a JSON value as a person would."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "an object"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def line_offset(text: str, path: FieldPath) -> int:
    """Return how many lines below its first a value of an indented JSON text begins.

    A path that leads out of the text ends at the last value that is there.
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


def _oddities(value: Any, path: FieldPath, text: str) -> Iterator[ParseError]:
    """Find what `json.loads` lets through."""

    def fault(kind: str, path: FieldPath, what: str, fix: str) -> ParseError:
        line = line_offset(text, path) if "\n" in text else 0
        return ParseError(kind, what, fix, format_field_path(path), line)

    match value:
        case dict():
            if isinstance(value, _Twice):
                yield fault(
                    "duplicate-key",
                    (*path, value.key),
                    f"the key {value.key!r} is there twice",
                    "each key once",
                )
            for key, item in value.items():
                if _half_surrogate(key) is not None:
                    yield fault(
                        "surrogate", path, "a key has half a surrogate pair", "whole characters"
                    )
                else:
                    yield from _oddities(item, (*path, key), text)
        case list():
            for index, item in enumerate(value):
                yield from _oddities(item, (*path, index), text)
        case float() if not math.isfinite(value):
            name = "NaN" if math.isnan(value) else "an infinite number"
            yield fault("nan", path, f"{name} is no JSON", "null, or leave the field out")
        case str() if (at := _half_surrogate(value)) is not None:
            yield fault(
                "surrogate",
                path,
                f"half a surrogate pair at character {at + 1}, which is no Unicode",
                "both halves, or the character itself",
            )


def _half_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


_CUT = "or is the row cut off?"
_CONTROL_NAMES = {"\n": ("line end", r"\n"), "\t": ("tab", r"\t"), "\r": ("return", r"\r")}


def _explain(said: str, at: int, text: str) -> ParseError:
    """Turn a message of Python's JSON parser, which differs between versions, into one of ours."""
    if text[:at].rstrip().endswith(",") and text[at:].lstrip().startswith(("}", "]")):
        at = text.rindex(",", 0, at)  # where newer versions of Python point
    what, fix = _words(said, at, text)
    kind = "half-row" if what.startswith("the row ends") else "json"
    line_start = text.rfind("\n", 0, at) + 1
    return ParseError(kind, what, fix, f"column {at - line_start + 1}", text.count("\n", 0, at))


def _words(said: str, at: int, text: str) -> tuple[str, str]:
    rest = text[at:].lstrip()
    first = rest[:1]
    if said.startswith("Unterminated string"):
        return "the row ends inside a text that begins here", f"a closing quote; {_CUT}"
    if not first:
        return "the row ends before it is complete", f"a closing bracket; {_CUT}"
    if said.startswith("Invalid control character"):
        name, escape = _CONTROL_NAMES.get(
            text[at], (f"control character U+{ord(text[at]):04X}", f"\\u{ord(text[at]):04x}")
        )
        return f"a raw {name} inside a text", f"write {escape}"
    if said.startswith("Invalid \\escape"):
        return f"{text[at : at + 2]} is no escape of JSON", "two backslashes for one in the text"
    if said.startswith("Invalid \\u"):
        return r"a \u escape without four hex digits", r"\u4e2d, or the character itself"
    before = text[:at].rstrip()[-1:]
    if first == ",":
        if said.startswith("Extra data"):
            return "a comma after the row's end", "one object per line, no commas between"
        return "a comma too many", "leave it out"
    if first == "'":
        return "single quotes", 'double quotes: "text"'
    if said.startswith("Extra data"):
        if first == "{":
            return "a second object on the same line", "one object per line"
        return "more after the row's end", "one object per line and nothing else"
    word = rest.split(",")[0].split("}")[0].split("]")[0].split(":")[0].strip()
    for python, json_word in (("True", "true"), ("False", "false"), ("None", "null")):
        if word == python:
            return f"{python} is Python, not JSON", json_word
    if said.startswith("Expecting property name"):
        return f"a key without double quotes: {_short(word)}", f'"{_short(word)}"'
    if said.startswith("Expecting ':'"):
        return f"no colon between key and value, but {_short(rest)}", '"key": value'
    if said.startswith("Expecting ','"):
        if before == '"' and first != '"':
            return f"a text ends here, and then comes {_short(rest)}", r"a comma; or \" for a quote"
        return f"a comma is missing before {_short(rest)}", "put one"
    return f"no JSON value: {_short(rest)}", 'texts stand in double quotes: "text"'


def _short(text: str) -> str:
    text = text.split("\n")[0]
    return text if len(text) <= 20 else text[:20] + "…"
