"""Dataclasses from parsed JSON objects, validated by pydantic."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_T = TypeVar("_T")
_adapters: dict[type, "TypeAdapter[Any]"] = {}


def from_json(
    kind: type[_T], value: object, *, unknown: Literal["ignore", "refuse"] = "ignore"
) -> _T:
    """Build a dataclass from a parsed JSON object, with nested dataclasses and tuples.

    Args:
        unknown: what to do about keys that are not fields, which a later release may have written.

    Raises:
        ValueError: a field is missing or has another type, or a key is refused; names the field.
    """
    from pydantic import TypeAdapter, ValidationError

    if unknown == "refuse" and is_dataclass(kind) and isinstance(value, Mapping):
        refused = value.keys() - {field.name for field in fields(kind) if field.init}
        if refused:
            raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(refused))}")
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    try:
        instance: _T = _adapters[kind].validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {first['msg']}" if path else first["msg"]) from error
    return instance
