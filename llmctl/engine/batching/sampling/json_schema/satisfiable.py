"""Removal of the parts of a schema that no finite text fits."""

from typing import Any


def without_endless(schema: Any, definitions: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the schema and its definitions with `False` for what only endless text would fit.

    Args:
        schema: normalized.
        definitions: normalized schemas by reference.
    """
    finite: set[str] = set()
    while True:
        before = len(finite)
        for reference, value in reversed(definitions.items()):
            if reference not in finite and _is_finite(value, finite):
                finite.add(reference)
        if len(finite) == before:
            break
    kept = {ref: _pruned(value, finite) for ref, value in definitions.items() if ref in finite}
    return _pruned(schema, finite), kept


def _is_finite(schema: Any, finite: set[str]) -> bool:
    """Return whether a finite text may fit, if the references in `finite` are those that do."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and schema["$ref"] not in finite:
        return False
    if not all(_is_finite(part, finite) for part in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(_is_finite(part, finite) for part in schema["anyOf"]):
        return False
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return all(
            _is_finite(fields.get(name, True), finite) for name in schema.get("required", ())
        )
    if schema.get("type") == "array":
        first = schema.get("prefixItems", [])
        least = schema.get("minItems", 0)
        needed = first[:least]
        if least > len(first):
            needed = [*needed, schema.get("items", True)]
        return all(_is_finite(item, finite) for item in needed)
    return True


def _pruned(schema: Any, finite: set[str]) -> Any:
    if isinstance(schema, bool):
        return schema
    if not _is_finite(schema, finite):
        return False
    found = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in found:
            found[key] = {name: _pruned(part, finite) for name, part in found[key].items()}
    for key in ("items", "additionalProperties"):
        if key in found:
            found[key] = _pruned(found[key], finite)
    for key in ("anyOf", "allOf", "prefixItems"):
        if key in found:
            found[key] = [_pruned(part, finite) for part in found[key]]
    return found
