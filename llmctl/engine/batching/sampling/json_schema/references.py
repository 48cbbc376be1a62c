"""References within a schema, and which alternatives of `oneOf` exclude each other."""

import json
from typing import Any
from urllib.parse import unquote

_ALL_TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))
_DEPTH = 12
"""References and levels that the comparison of two schemas follows."""
_MOST_STEPS = 50_000


class SchemaDocument:
    """A schema and what its references point to."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def count_step(self) -> None:
        """Count one subschema, since references can repeat each other without end.

        Raises:
            ValueError: there were too many.
        """
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ValueError(f"the schema has more than {_MOST_STEPS} parts with its references")

    def resolve(self, reference: str, path: str) -> Any:
        """Return the schema that `reference` points to (RFC 6901, `$anchor`).

        Raises:
            ValueError: there is none in this document.
        """
        name = self._root.get("$id", self._root.get("id"))
        local = reference
        if isinstance(name, str) and name and reference.startswith(name.rstrip("#")):
            local = reference[len(name.rstrip("#")) :] or "#"
        if not local.startswith("#"):
            raise ValueError(f"'$ref' at {path} is {reference[:100]!r}, outside this schema")
        fragment = unquote(local[1:])
        if fragment and not fragment.startswith("/"):
            found = _anchored(self._root, fragment)
        else:
            found = self._root
            for part in fragment.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                    found = found[int(key)]
                else:
                    found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise ValueError(f"'$ref' at {path} is {reference[:100]!r}, which does not exist")
        return found

    def target(self, schema: Any, path: str) -> Any:
        """Return the schema itself, or where a chain of references alone ends."""
        for _ in range(_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            if schema.keys() & {"properties", "allOf", "anyOf", "oneOf", "type", "required"}:
                break
            schema = self.resolve(schema["$ref"], path)
        return schema

    def exclusive(self, one: Any, other: Any, path: str, depth: int = _DEPTH) -> bool:
        """Return whether it is certain that no value fits both schemas."""
        self.count_step()
        if depth == 0:
            return False
        one, other = self.target(one, path), self.target(other, path)
        if one is False or other is False:
            return True
        if not isinstance(one, dict) or not isinstance(other, dict):
            return False
        for first, second in ((one, other), (other, one)):
            for key in ("anyOf", "oneOf"):
                options = first.get(key)
                if isinstance(options, list) and all(
                    self.exclusive(option, second, path, depth - 1) for option in options
                ):
                    return True
        if not _types(one) & _types(other):
            return True
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not values & others
        if _types(one) & _types(other) == {"number"}:
            return _below(one, other) or _below(other, one)
        if _types(one) == _types(other) == {"object"}:
            return self._exclusive_objects(one, other, path, depth)
        return False

    def _exclusive_objects(
        self, one: dict[str, Any], other: dict[str, Any], path: str, depth: int
    ) -> bool:
        for first, second in ((one, other), (other, one)):
            fields, theirs = first.get("properties", {}), second.get("properties", {})
            for name in first.get("required", ()):
                if name in theirs:
                    if self.exclusive(fields.get(name, True), theirs[name], path, depth - 1):
                        return True
                elif second.get("additionalProperties") is False and not second.get(
                    "patternProperties"
                ):
                    return True
        return False


def _anchored(schema: Any, name: str) -> Any:
    if isinstance(schema, dict):
        if schema.get("$anchor") == name or schema.get("$id") == f"#{name}":
            return schema
        schema = list(schema.values())
    if isinstance(schema, list):
        return next((s for value in schema if (s := _anchored(value, name)) is not None), None)
    return None


def _types(schema: dict[str, Any]) -> frozenset[str]:
    types = schema.get("type")
    if types is None:
        if (values := _values(schema)) is None:
            return _ALL_TYPES
        return frozenset(kind for kind, _ in values)
    names = types if isinstance(types, list) else [types]
    found = frozenset("number" if name == "integer" else str(name) for name in names)
    return found | {"null"} if schema.get("nullable") is True else found


def _values(schema: dict[str, Any]) -> frozenset[tuple[str, Any]] | None:
    """Return the values of `const` or `enum` with their types, or `None` without them."""
    if "const" in schema:
        values = [schema["const"]]
    elif isinstance(schema.get("enum"), list):
        values = schema["enum"]
    else:
        return None
    return frozenset(_value(value) for value in values)


def _value(value: Any) -> tuple[str, Any]:
    match value:
        case None:
            return "null", None
        case bool():
            return "boolean", value
        case int() | float():
            return "number", value
        case str():
            return "string", value
        case list():
            return "array", json.dumps(value, sort_keys=True)
    return "object", json.dumps(value, sort_keys=True)


def _below(one: dict[str, Any], other: dict[str, Any]) -> bool:
    high, low = one.get("maximum"), other.get("minimum")
    return isinstance(high, int | float) and isinstance(low, int | float) and high < low
