"""The keywords of JSON Schema: which count, which are refused, and checks of their values."""

from typing import Any

from llmctl.engine.batching.sampling.json_schema.numbers import KEYWORDS

REFUSED = {
    "not": "a grammar has no complement of a schema",
    "if": "its alternatives depend on the whole value; use 'anyOf'",
    "dependentRequired": "properties depend on each other; use 'anyOf'",
    "dependentSchemas": "properties depend on each other; use 'anyOf'",
    "dependencies": "properties depend on each other; use 'anyOf'",
    "uniqueItems": "items are compared only if they are at most 4 constants, or any strings or "
    "integers where no other array of the schema may repeat items; leave it out and remove "
    "duplicates afterwards",
    "contains": "it counts items that fit; describe the items with 'prefixItems'",
    "unevaluatedProperties": "beside other schemas it depends on which of them fit",
    "unevaluatedItems": "it depends on which schemas fit; use 'items'",
    "$dynamicRef": "its target depends on the way to it; use '$ref'",
    "$recursiveRef": "its target depends on the way to it; use '$ref'",
}
"""Keywords that are refused, with the reasons."""

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
OBJECT = ("properties", "required", "additionalProperties", "patternProperties", "propertyNames")
CONSTRAINTS = (
    *("type", "const", "enum", "format", "pattern", "items", "prefixItems", "additionalItems"),
    *(*COUNTS, *OBJECT, *KEYWORDS, "anyOf", "oneOf", "allOf", "$ref", "nullable", *REFUSED),
)


TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "if"}
MOST_LEVELS = 1200
"""The library follows references by recursion on the stack."""
OTHER_TYPES = ["null", "boolean", "number", "array", "object"]


def levels_of(value: Any) -> int:
    """Return how deep objects are nested."""
    if isinstance(value, dict):
        return 1 + max(map(levels_of, value.values()), default=0)
    return max(map(levels_of, value), default=0) if isinstance(value, list) else 0


def refusal(key: str, path: str) -> str:
    return f"'{key}' at {path} is not supported: {REFUSED[key]}"


def schema_list(value: Any, key: str, path: str) -> list[Any]:
    if not isinstance(value, list) or (not value and key != "prefixItems"):
        raise ValueError(f"'{key}' at {path} is not a list of schemas")
    return value
