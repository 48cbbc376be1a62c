"""Dataclasses from parsed JSON objects."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
Unknown = Literal["ignore", "refuse"]


def from_json(kind: type[_T], value: object, *, unknown: Unknown = "ignore") -> _T:
    """Build a dataclass from a parsed JSON object.

    The types of the fields decide how their values are converted: objects become nested
    dataclasses and lists become tuples. All other values are taken unchanged and unchecked.

    Args:
        unknown: what to do about keys that are not fields, which a later release may have written.

    Raises:
        TypeError: `value` is not an object, a required field is missing, or a key is refused.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind.__name__} must be an object, not {type(value).__name__}")
    hints = _field_types(kind)  # type: ignore[arg-type]  # classes are hashable
    refused = value.keys() - hints.keys() if unknown == "refuse" else ()
    if refused:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(refused))}")
    return kind(
        **{name: _convert(hints[name], v, unknown) for name, v in value.items() if name in hints}
    )


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _convert(hint: Any, value: Any, unknown: Unknown) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        choices = [argument for argument in arguments if argument is not NoneType]
        return value if value is None or len(choices) > 1 else _convert(choices[0], value, unknown)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value, unknown=unknown)
    if origin is tuple and isinstance(value, list):
        if arguments[1:] == (...,):
            return tuple(_convert(arguments[0], item, unknown) for item in value)
        return tuple(map(_convert, arguments, value, [unknown] * len(value)))
    return value
