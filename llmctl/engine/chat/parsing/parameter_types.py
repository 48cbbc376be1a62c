"""Conversion of argument values that a model writes as text, by the tool's JSON schema."""

import ast
import json
from collections.abc import Mapping
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
}
_MOST_NESTED = 100


class ToolParameters:
    """The parameters of one tool."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        properties = schema.get("properties")
        self._properties = properties if isinstance(properties, Mapping) else {}

    def is_string(self, name: str) -> bool:
        """Whether the values of a parameter are strings only."""
        return self._types(name) == {"string"}

    def may_be_string(self, name: str) -> bool:
        """Whether a value of a parameter may be a string."""
        return "string" in self._types(name)

    def value(self, name: str, text: str) -> object:
        """Return the value that a text stands for.

        A text that is no JSON or Python literal of an allowed type is a string.
        """
        types = self._types(name)
        if types == {"string"}:
            return text
        value = literal(text.strip(), text)
        if "string" in types and not isinstance(value, _allowed(types)):
            return text
        return value

    def _types(self, name: str) -> set[str]:
        """Return the names of the types that a parameter may have; empty if unknown."""
        return self._types_of(self._properties.get(name), 0)

    def _types_of(self, schema: Any, depth: int) -> set[str]:
        if not isinstance(schema, Mapping) or depth > 8:
            return set()
        if isinstance(schema.get("type"), str):
            return {schema["type"]}
        if isinstance(schema.get("type"), list):
            return {kind for kind in schema["type"] if isinstance(kind, str)}
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                return set().union(*(self._types_of(part, depth + 1) for part in schema[key]))
        if isinstance(schema.get("$ref"), str):
            return self._types_of(self._resolve(schema["$ref"]), depth + 1)
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
            return {"string"}
        return set()

    def _resolve(self, reference: str) -> Any:
        """Return what a reference within the schema points at (RFC 6901)."""
        node: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if not isinstance(node, Mapping):
                return None
            node = node.get(part.replace("~1", "/").replace("~0", "~"))
        return node


def _allowed(types: set[str]) -> tuple[type, ...]:
    return tuple(kind for name in types for kind in _KINDS.get(name, ()))


def literal(text: str, otherwise: object) -> object:
    """Return the value of a JSON or Python literal, `otherwise` if it is none."""
    for parse in (json.loads, _python_literal):
        try:
            value: object = parse(text)
            json.dumps(value, allow_nan=False)  # infinite numbers are not JSON
            return value
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return otherwise


def _python_literal(text: str) -> object:
    return _converted(ast.parse(_with_escaped_newlines(text), mode="eval").body, 0)


_NAMES = {"true": True, "false": False, "null": None}


def _converted(node: ast.expr, depth: int) -> object:
    """Return the value of a literal; JSON's `true`, `false` and `null` are allowed in it.

    Raises:
        ValueError: it is not a literal that JSON can represent.
    """
    if depth > _MOST_NESTED:
        raise ValueError("nested too deeply")
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_converted(item, depth + 1) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_key(k): _converted(v, depth + 1) for k, v in pairs}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return str(node.value)
    raise ValueError("not a key of JSON")


def _with_escaped_newlines(text: str) -> str:
    """Return a Python literal with the newlines in its strings written as escapes."""
    quote, escaped, written = "", False, []
    for char in text:
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        written.append({"\n": "\\n", "\r": "\\r"}.get(char, char) if quote else char)
    return "".join(written)
