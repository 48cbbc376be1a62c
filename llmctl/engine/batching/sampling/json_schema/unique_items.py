"""`uniqueItems` of the arrays for which it can be enforced."""

import itertools
from typing import Any

_MOST_CONSTANTS = 4


def permutations_of(schema: dict[str, Any], items: Any) -> list[dict[str, Any]] | None:
    """Return the arrays of a few constants without repetition; `None` if the items are others.

    Args:
        schema: of the array.
        items: schema of its items.
    """
    values = items.get("enum") if isinstance(items, dict) else None
    if not isinstance(values, list) or len(values) > _MOST_CONSTANTS or "prefixItems" in schema:
        return None
    if any(isinstance(value, list | dict) for value in values):
        return None
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(values))
    return [
        {"type": "array", "prefixItems": [{"const": value} for value in found], "items": False}
        | {"minItems": size, "maxItems": size}
        for size in range(len(values) + 1)
        if least <= size <= most
        for found in itertools.permutations(values, size)
    ]


def is_any_text(schema: dict[str, Any], items: Any) -> bool:
    """Return whether the items are strings or integers without other keywords.

    Their number is then not limited, so that a text is never forced to repeat one.
    """
    if not isinstance(items, dict) or items.get("type") not in ("string", "integer"):
        return False
    counts = all(type(schema.get(key, 0)) is int for key in ("minItems", "maxItems"))
    annotations = {"type", "title", "description", "default", "examples"}
    return counts and not items.keys() - annotations and schema.keys() <= _ARRAY


_ARRAY = {"type", "items", "uniqueItems", "minItems", "maxItems"}
