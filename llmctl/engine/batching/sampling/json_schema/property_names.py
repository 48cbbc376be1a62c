"""`propertyNames` as named properties or patterns of names."""

from typing import Any

from llmctl.engine.batching.sampling.json_schema.formats import string_keywords

_KEYWORDS = {"type", "const", "enum", "pattern", "minLength", "maxLength", "format"}
_ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "$comment",
    "id",
    "$id",
}


def apply_property_names(
    names: Any, fields: dict[str, Any], patterns: dict[str, Any], rest: Any, path: str
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return the properties, their patterns and the schema of all others under `propertyNames`.

    Raises:
        ValueError: the combination cannot be enforced.
    """
    if names is True:
        return fields, patterns, rest
    if names is False:
        return dict.fromkeys(fields, False), {}, False
    keys = set(names) - _ANNOTATIONS if isinstance(names, dict) else {"?"}
    if keys - _KEYWORDS or ("type" in keys and names["type"] != "string"):
        raise ValueError(f"'propertyNames' at {path} is not supported: only strings of one kind")
    keys.discard("type")
    if not keys:
        return fields, patterns, rest
    value = True if rest is None else rest
    if keys <= {"const", "enum"} and len(keys) == 1 and not patterns:
        allowed = names["enum"] if "enum" in names else [names["const"]]
        return (
            {name: fields.get(name, value) for name in [*fields, *allowed] if name in allowed},
            {},
            False,
        )
    text = string_keywords(names, path)
    if fields or patterns or keys & {"const", "enum"} or text.keys() - {"pattern"}:
        raise ValueError(
            f"'propertyNames' at {path} is supported with 'enum', or with a 'pattern', length "
            "or format in an object without 'properties'"
        )
    if text:
        if keys & {"minLength", "maxLength"}:
            raise ValueError(f"'propertyNames' at {path} has a length beside a pattern or format")
        return {}, {text["pattern"]: value}, False
    if not keys & {"minLength", "maxLength"}:
        return fields, patterns, rest
    least, most = int(names.get("minLength", 0)), names.get("maxLength")
    limit = "" if most is None else int(most)
    return {}, {f"^(?s:.){{{least},{limit}}}$": value}, False
