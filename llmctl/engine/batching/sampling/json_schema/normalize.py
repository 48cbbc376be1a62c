"""Rewriting of a JSON schema into keywords that the grammar library enforces exactly.

Where a keyword cannot be enforced, the schema is narrowed so that every reply is still valid, or
refused with the keyword and its place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.engine.batching.sampling.json_schema.formats import string_keywords, without_nul
from llmctl.engine.batching.sampling.json_schema.numbers import KEYWORDS, number_schemas
from llmctl.engine.batching.sampling.json_schema.property_names import apply_property_names
from llmctl.engine.batching.sampling.json_schema.references import SchemaDocument
from llmctl.engine.batching.sampling.json_schema.satisfiable import without_endless

REFUSED = {
    "not": "a grammar has no complement of a schema",
    "if": "its alternatives depend on the whole value; use 'anyOf'",
    "dependentRequired": "properties depend on each other; use 'anyOf'",
    "dependentSchemas": "properties depend on each other; use 'anyOf'",
    "dependencies": "properties depend on each other; use 'anyOf'",
    "uniqueItems": "a grammar cannot compare items; leave it out and remove duplicates afterwards",
    "contains": "it counts items that fit; describe the items with 'prefixItems'",
    "unevaluatedProperties": "beside other schemas it depends on which of them fit",
    "unevaluatedItems": "it depends on which schemas fit; use 'items'",
    "$dynamicRef": "its target depends on the way to it; use '$ref'",
    "$recursiveRef": "its target depends on the way to it; use '$ref'",
}
"""Keywords that are refused, with the reasons."""

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_OBJECT = ("properties", "required", "additionalProperties", "patternProperties", "propertyNames")
_CONSTRAINTS = (
    *("type", "const", "enum", "format", "pattern", "items", "prefixItems", "additionalItems"),
    *(*_COUNTS, *_OBJECT, *KEYWORDS, "anyOf", "oneOf", "allOf", "$ref", "nullable", *REFUSED),
)


@dataclass(frozen=True, slots=True)
class NormalizedSchema:
    """A schema that is ready to be compiled."""

    schema: dict[str, Any]
    parts: tuple[tuple[str, dict[str, Any]], ...]
    """Places of the schemas it was built from and these, innermost first, to locate errors."""


def normalize(source: str, *, open_objects: bool = False) -> NormalizedSchema:
    """Return a JSON schema in the form that is enforced exactly.

    Args:
        source: the schema as JSON.
        open_objects: allow more properties than named where `additionalProperties` is not given,
            as JSON Schema does; otherwise such objects have only the named ones.

    Raises:
        ValueError: it is not a JSON object, has a keyword that cannot be enforced, or no finite
            document is valid.
    """
    try:
        schema = json.loads(source)
        source.encode()
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
        if not isinstance(schema, dict):
            raise ValueError("the schema is not a JSON object")
        return _Normalizer(schema, closes=not open_objects).run()
    except json.JSONDecodeError as error:
        raise ValueError(f"the schema is not JSON: {error}") from error
    except UnicodeEncodeError as error:
        raise ValueError("the schema has an escape of half a character (surrogate)") from error
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply: recursion limit exceeded") from error


class _Normalizer:
    """Rewrites one schema; each target of a reference becomes a definition of its own."""

    def __init__(self, root: dict[str, Any], *, closes: bool) -> None:
        self._root = root
        self._closes = closes
        self._document = SchemaDocument(root)
        self._names: dict[tuple[str, bool], str] = {}
        self._pending: list[tuple[str, Any, bool, str]] = []
        self._parts: list[tuple[str, dict[str, Any]]] = []

    def run(self) -> NormalizedSchema:
        """Return the whole schema."""
        found = self.schema(self._root, "#", self._closes)
        levels = _levels(found)
        definitions: dict[str, Any] = {}
        while self._pending:
            name, target, closes, path = self._pending.pop()
            definitions[name] = self.schema(target, path, closes)
            levels += _levels(definitions[name])
            if levels > _MOST_LEVELS:
                raise ValueError(
                    f"its definitions have more than {_MOST_LEVELS} levels of nesting together"
                )
        found, definitions = without_endless(found, definitions)
        if found is False:
            raise ValueError("no finite document is valid under the schema")
        defs = {"$defs": {name.rsplit("/", 1)[1]: value for name, value in definitions.items()}}
        parts = [(path, part | defs) for path, part in self._parts]
        found = {} if found is True else found
        return NormalizedSchema(found | defs, tuple(parts))

    def schema(self, value: Any, path: str, closes: bool) -> Any:
        """Return a normalized schema.

        Args:
            value: schema.
            path: JSON pointer to it, for errors.
            closes: forbid additional properties unless the schema says otherwise.
        """
        self._document.count_step()
        found = self._schema(value, path, closes)
        if isinstance(found, dict):
            self._parts.append((path, found))
        return found

    def _schema(self, value: Any, path: str, closes: bool) -> Any:
        if isinstance(value, bool):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"the schema at {path} is neither an object nor true or false")
        schema = {key: value[key] for key in _CONSTRAINTS if value.get(key) is not None}
        if "const" in value:
            schema["const"] = value["const"]
        if schema.pop("nullable", None) is True:  # OpenAPI 3.0
            return {"anyOf": [self.schema(schema, path, closes), {"type": "null"}]}
        if schema.get("not") in ({}, True):
            return False
        self._check(schema, path)
        if "$ref" in schema and len(schema) == 1:
            return {"$ref": self._reference(schema["$ref"], path, closes)}
        combined = [key for key in ("$ref", "allOf", "anyOf", "oneOf") if key in schema]
        if not combined:
            return self._plain(schema, path, closes)
        if combined in (["anyOf"], ["oneOf"]):
            return self._alternatives(schema, combined[0], path, closes)
        members = [*_list(schema.pop("allOf", []), "allOf", path)]
        members += [{key: schema.pop(key)} for key in combined if key in schema]
        return self._all_of([*members, schema] if schema else members, path, closes)

    def _check(self, schema: dict[str, Any], path: str) -> None:
        """Remove refused keywords that mean nothing here, and refuse the others."""
        if schema.get("uniqueItems") is False or schema.get("maxItems", 2) in (0, 1):
            schema.pop("uniqueItems", None)
        if schema.get("not") is False:
            del schema["not"]
        if schema.get("unevaluatedProperties") is True:
            del schema["unevaluatedProperties"]
        elif schema.get("unevaluatedProperties") is False and not schema.keys() & _COMBINING:
            del schema["unevaluatedProperties"]
            schema.setdefault("additionalProperties", False)
        for key in schema:
            if key in REFUSED:
                raise ValueError(f"'{key}' at {path} is not supported: {REFUSED[key]}")
        for key in _COUNTS:
            if key in schema:
                count = schema[key]
                if isinstance(count, bool) or not isinstance(count, int | float) or count < 0:
                    raise ValueError(f"'{key}' at {path} is not a number of at least 0")
                if count != int(count):
                    raise ValueError(f"'{key}' at {path} is {count}, not a whole number")
                schema[key] = int(count)

    def _reference(self, reference: Any, path: str, closes: bool) -> str:
        if not isinstance(reference, str):
            raise ValueError(f"'$ref' at {path} is not a string")
        key = (reference, closes)
        if key not in self._names:
            target = self._document.resolve(reference, path)
            self._names[key] = name = f"#/$defs/{len(self._names)}"
            self._pending.append((name, target, closes, reference))
        return self._names[key]

    def _all_of(self, members: list[Any], path: str, closes: bool) -> Any:
        if len(members) == 1:
            return self.schema(members[0], path, closes)
        if closes and (merged := self._merged(members, path)) is not None:
            return self.schema(merged, path, closes)
        return {"allOf": [self.schema(member, path, False) for member in members]}

    def _alternatives(self, schema: dict[str, Any], key: str, path: str, closes: bool) -> Any:
        options = _list(schema.pop(key), key, path)
        if key == "oneOf":
            for at, option in enumerate(options):
                for other in options[at + 1 :]:
                    if not self._document.exclusive(option, other, path):
                        raise ValueError(
                            f"'oneOf' at {path} is not supported: its schemas do not exclude each "
                            "other by type, a constant or a required property; use 'anyOf'"
                        )
        places = [f"{path}/{key}/{at}" for at in range(len(options))]
        if not schema:
            pairs = zip(options, places, strict=True)
            return {"anyOf": [self.schema(option, place, closes) for option, place in pairs]}
        if closes:
            merged = [self._merged([schema, option], path) for option in options]
            if all(one is not None for one in merged):
                pairs = zip(merged, places, strict=True)
                return {"anyOf": [self.schema(one, place, closes) for one, place in pairs]}
        rest = self.schema(schema, path, False)
        pairs = zip(options, places, strict=True)
        found = {"anyOf": [self.schema(option, place, False) for option, place in pairs]}
        return {"allOf": [rest, found]}

    def _merged(self, members: Sequence[Any], path: str, depth: int = 8) -> dict[str, Any] | None:
        """Return one schema for objects that only name properties; `None` for other schemas."""
        fields: dict[str, Any] = {}
        required: list[str] = []
        for member in members:
            self._document.count_step()
            target = self._document.target(member, path)
            if not isinstance(target, dict) or depth == 0:
                return None
            keys = {key for key in _CONSTRAINTS if target.get(key) is not None}
            if keys == {"allOf"}:
                target = self._merged(_list(target["allOf"], "allOf", path), path, depth - 1)
                if target is None:
                    return None
                keys = set()
            if (
                keys - {"type", "properties", "required"}
                or target.get("type", "object") != "object"
            ):
                return None
            for name, field in target.get("properties", {}).items():
                fields[name] = {"allOf": [fields[name], field]} if name in fields else field
            required += [name for name in target.get("required", ()) if name not in required]
        if not fields:
            return None
        return {"type": "object", "properties": fields, "required": required}

    def _plain(self, schema: dict[str, Any], path: str, closes: bool) -> Any:
        kinds = schema.get("type")
        types = kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]
        if "type" in schema and not all(kind in _TYPES for kind in types):
            raise ValueError(f"'type' at {path} is {json.dumps(kinds)[:80]}; known are {_TYPES}")
        kept = ("type", "const", "enum", "minLength", "maxLength")
        found: dict[str, Any] = {key: schema[key] for key in kept if key in schema}
        both: list[Any] = []
        if not types or "string" in types:
            text = string_keywords(schema, path)
            both += [{"type": "string", **part} for part in text.pop("allOf", [])]
            if both and len(types) != 1:
                both = [{"anyOf": [part, {"type": _OTHERS}]} for part in both]
            found |= text
        integer = "integer" in types and "number" not in types
        if (not types or integer or "number" in types) and (
            schema.keys() & set(KEYWORDS) or (integer and "format" in schema)
        ):
            numbers = number_schemas(schema, integer=integer, path=path)
            if len(types) == 1 and not found.keys() & {"const", "enum"}:
                return numbers[0] if len(numbers) == 1 else {"anyOf": numbers}
            others = [kind for kind in types or _TYPES if kind not in ("number", "integer")]
            both.append({"anyOf": [*numbers, *({"type": kind} for kind in others)]})
        if not types or "array" in types:
            found |= self._array(schema, path)
        if not types or "object" in types:
            found |= self._object(schema, path, closes)
        return {"allOf": [found, *both]} if both else found

    def _array(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        kept = ("minItems", "maxItems")
        found: dict[str, Any] = {key: schema[key] for key in kept if key in schema}
        first, items = schema.get("prefixItems"), schema.get("items")
        if isinstance(items, list):  # before draft 2020-12
            first, items = items, schema.get("additionalItems")
        if first is not None:
            found["prefixItems"] = [
                self.schema(item, f"{path}/prefixItems/{at}", self._closes)
                for at, item in enumerate(_list(first, "prefixItems", path))
            ]
        if items is not None:
            found["items"] = self.schema(items, f"{path}/items", self._closes)
        return found

    def _object(self, schema: dict[str, Any], path: str, closes: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        fields, required = schema.get("properties", {}), schema.get("required", [])
        patterns = schema.get("patternProperties", {})
        for key, value in (("properties", fields), ("patternProperties", patterns)):
            if not isinstance(value, dict):
                raise ValueError(f"'{key}' at {path} is not an object")
        if not isinstance(required, list) or not all(isinstance(n, str) for n in required):
            raise ValueError(f"'required' at {path} is not a list of names")
        rest = schema.get("additionalProperties")
        if rest is None and closes and ("properties" in schema or patterns):
            rest = False
            if not patterns:
                fields = fields | {name: {} for name in required if name not in fields}
        patterns = {without_nul(name): part for name, part in patterns.items()}
        if "propertyNames" in schema:
            names = self._document.target(schema["propertyNames"], path)
            fields, patterns, rest = apply_property_names(names, fields, patterns, rest, path)
        if patterns and rest is not False and schema.get("minProperties", 0) > len(required):
            raise ValueError(f"'minProperties' at {path} is not supported with 'patternProperties'")
        for key, parts in (("properties", fields), ("patternProperties", patterns)):
            if parts:
                found[key] = {
                    name: self.schema(part, f"{path}/{key}/{name}", self._closes)
                    for name, part in parts.items()
                }
        if rest is not None:
            place = f"{path}/additionalProperties"
            found["additionalProperties"] = self.schema(rest, place, self._closes)
        if required:
            found["required"] = required
        return found | self._property_counts(schema, found, required, path)

    def _property_counts(
        self, schema: dict[str, Any], found: dict[str, Any], required: list[str], path: str
    ) -> dict[str, Any]:
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        counts = {} if least <= len(required) else {"minProperties": least}
        patterns = found.get("patternProperties")
        closed = found.get("additionalProperties") is False and not patterns
        if most is not None and not (closed and most >= len(found.get("properties", {}))):
            counts["maxProperties"] = most
        if counts and set(found.get("properties", {})) - set(required):
            raise ValueError(
                f"'{next(iter(counts))}' at {path} is supported only where all properties that "
                "are named are required"
            )
        if counts.get("minProperties", 0) > 1 and patterns:
            raise ValueError(
                f"'minProperties' above 1 at {path} is not supported with patterns of names"
            )
        return counts


_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "if"}
_MOST_LEVELS = 1200
"""The library follows references by recursion on the stack."""
_OTHERS = ["null", "boolean", "number", "array", "object"]


def _levels(value: Any) -> int:
    """Return how deep objects are nested."""
    if isinstance(value, dict):
        return 1 + max(map(_levels, value.values()), default=0)
    return max(map(_levels, value), default=0) if isinstance(value, list) else 0


def _list(value: Any, key: str, path: str) -> list[Any]:
    if not isinstance(value, list) or (not value and key != "prefixItems"):
        raise ValueError(f"'{key}' at {path} is not a list of schemas")
    return value
