"""Rewriting of a JSON schema into keywords that the grammar library enforces exactly.

Where a keyword cannot be enforced, the schema is narrowed so that every reply is still valid, or
refused with the keyword and its place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.engine.batching.sampling.json_schema.formats import string_keywords, without_nul
from llmctl.engine.batching.sampling.json_schema.keywords import (
    COMBINING,
    CONSTRAINTS,
    COUNTS,
    MOST_LEVELS,
    OTHER_TYPES,
    REFUSED,
    TYPES,
    levels_of,
    refusal,
    schema_list,
)
from llmctl.engine.batching.sampling.json_schema.numbers import KEYWORDS, number_schemas
from llmctl.engine.batching.sampling.json_schema.property_names import apply_property_names
from llmctl.engine.batching.sampling.json_schema.references import SchemaDocument
from llmctl.engine.batching.sampling.json_schema.satisfiable import without_endless
from llmctl.engine.batching.sampling.json_schema.unique_items import is_any_text, permutations_of


@dataclass(frozen=True, slots=True)
class NormalizedSchema:
    """A schema that is ready to be compiled."""

    schema: dict[str, Any]
    parts: tuple[tuple[str, dict[str, Any]], ...]
    """Places of the schemas it was built from and these, innermost first, to locate errors."""
    unique_items: bool
    """Whether no array of strings or integers may have an item twice."""


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
        self._unique: list[str] = []
        """Places of arrays without equal items."""
        self._repeats = False
        """Whether another array may have equal items."""

    def run(self) -> NormalizedSchema:
        """Return the whole schema."""
        found = self.schema(self._root, "#", self._closes)
        levels = levels_of(found)
        definitions: dict[str, Any] = {}
        while self._pending:
            name, target, closes, path = self._pending.pop()
            definitions[name] = self.schema(target, path, closes)
            levels += levels_of(definitions[name])
            if levels > MOST_LEVELS:
                raise ValueError(
                    f"its definitions have more than {MOST_LEVELS} levels of nesting together"
                )
        found, definitions = without_endless(found, definitions)
        if found is False:
            raise ValueError("no finite document is valid under the schema")
        defs = {"$defs": {name.rsplit("/", 1)[1]: value for name, value in definitions.items()}}
        parts = [(path, part | defs) for path, part in self._parts]
        found = {} if found is True else found
        if self._unique and self._repeats:
            raise ValueError(refusal("uniqueItems", self._unique[0]))
        return NormalizedSchema(found | defs, tuple(parts), bool(self._unique))

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
            self._repeats |= value
            return value
        if not isinstance(value, dict):
            raise ValueError(f"the schema at {path} is neither an object nor true or false")
        schema = {key: value[key] for key in CONSTRAINTS if value.get(key) is not None}
        if "const" in value:
            schema["const"] = value["const"]
        if schema.pop("nullable", None) is True:  # OpenAPI 3.0
            return {"anyOf": [self.schema(schema, path, closes), {"type": "null"}]}
        if schema.get("not") in ({}, True):
            return False
        if schema.get("uniqueItems") is True and schema.get("type") == "array":
            items = self._document.target(schema.get("items", True), path)
            if (options := permutations_of(schema, items)) is not None:
                repeats = self._repeats
                found = self.schema({"anyOf": options}, path, closes)
                self._repeats = repeats
                return found
            if is_any_text(schema, items):
                del schema["uniqueItems"]
                self._unique.append(path)
                return schema
        self._check(schema, path)
        if "$ref" in schema and len(schema) == 1:
            return {"$ref": self._reference(schema["$ref"], path, closes)}
        combined = [key for key in ("$ref", "allOf", "anyOf", "oneOf") if key in schema]
        if not combined:
            return self._plain(schema, path, closes)
        if combined in (["anyOf"], ["oneOf"]):
            return self._alternatives(schema, combined[0], path, closes)
        members = [*schema_list(schema.pop("allOf", []), "allOf", path)]
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
        elif schema.get("unevaluatedProperties") is False and not schema.keys() & COMBINING:
            del schema["unevaluatedProperties"]
            schema.setdefault("additionalProperties", False)
        for key in schema:
            if key in REFUSED:
                raise ValueError(refusal(key, path))
        for key in COUNTS:
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
        options = schema_list(schema.pop(key), key, path)
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
            keys = {key for key in CONSTRAINTS if target.get(key) is not None}
            if keys == {"allOf"}:
                target = self._merged(schema_list(target["allOf"], "allOf", path), path, depth - 1)
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
        if "type" in schema and not all(kind in TYPES for kind in types):
            raise ValueError(f"'type' at {path} is {json.dumps(kinds)[:80]}; known are {TYPES}")
        kept = ("type", "const", "enum", "minLength", "maxLength")
        found: dict[str, Any] = {key: schema[key] for key in kept if key in schema}
        both: list[Any] = []
        if not types or "string" in types:
            text = string_keywords(schema, path)
            both += [{"type": "string", **part} for part in text.pop("allOf", [])]
            if both and len(types) != 1:
                both = [{"anyOf": [part, {"type": OTHER_TYPES}]} for part in both]
            found |= text
        integer = "integer" in types and "number" not in types
        if (not types or integer or "number" in types) and (
            schema.keys() & set(KEYWORDS) or (integer and "format" in schema)
        ):
            numbers = number_schemas(schema, integer=integer, path=path)
            if len(types) == 1 and not found.keys() & {"const", "enum"}:
                return numbers[0] if len(numbers) == 1 else {"anyOf": numbers}
            others = [kind for kind in types or TYPES if kind not in ("number", "integer")]
            both.append({"anyOf": [*numbers, *({"type": kind} for kind in others)]})
        if not types or "array" in types:
            self._repeats |= schema.get("maxItems") not in (0, 1)
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
                for at, item in enumerate(schema_list(first, "prefixItems", path))
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
