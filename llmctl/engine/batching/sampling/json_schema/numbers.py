"""Bounds of numbers: exact integers, and only ranges for which the grammar library is right."""

import math
from typing import Any

_EXACT = 2**53
"""The largest size up to which every integer is a double."""
_INT64 = 2**63 - 1
_LARGEST = 2**63 - 1024
"""The largest double that is an int64."""
_SMALLEST = 1e-9
"""Stands for an exclusive bound of 0 where the other bound is below 1 in size."""
_FORMATS = {f"int{n}": (-(2 ** (n - 1)), 2 ** (n - 1) - 1) for n in (8, 16, 32, 64)} | {
    f"uint{n}": (0, 2**n - 1) for n in (8, 16, 32, 64)
}
KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")

Bound = tuple[int | float, bool]
"""A bound, and whether it is excluded."""


def number_schemas(schema: dict[str, Any], *, integer: bool, path: str) -> list[dict[str, Any]]:
    """Return the alternatives that together are the numeric keywords of `schema`.

    Bounds beyond 2^53 are rounded inwards to the next double; those at the ends of int64 are left
    out, since no number in a reply is longer.

    Raises:
        ValueError: a keyword is no finite number, or no number is within the bounds.
    """
    for key in KEYWORDS:
        value = schema.get(key)
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"'{key}' at {path} is not a number")
    low = _bound(schema, "minimum", "exclusiveMinimum", max)
    high = _bound(schema, "maximum", "exclusiveMaximum", min)
    if integer and schema.get("format") in _FORMATS:
        least, most = _FORMATS[schema["format"]]
        low = (least, False) if low is None or low[0] < least else low
        high = (most, False) if high is None or high[0] > most else high
    if low is not None and high is not None and low[0] > high[0]:
        raise ValueError(f"the minimum {low[0]} at {path} is greater than maximum {high[0]}")
    beyond = (low is not None and low[0] > _EXACT) or (high is not None and high[0] < -_EXACT)
    integer = integer or beyond
    step = schema.get("multipleOf")
    if step is not None and (isinstance(step, bool) or step <= 0):
        raise ValueError(f"'multipleOf' at {path} is not greater than 0")
    rest = {} if step is None else {"multipleOf": step}
    if step is not None:
        # A multiple must be complete before the limit of digits.
        limit = _LARGEST if integer else _EXACT
        low = (-limit, False) if low is None or low[0] < -limit else low
        high = (limit, False) if high is None or high[0] > limit else high
    ranges = [_integers(low, high)] if integer else _numbers(low, high)
    found = [bounds | rest for bounds in ranges if bounds is not None]
    if not found:
        raise ValueError(f"no number is between the bounds at {path}")
    return found


def _bound(schema: dict[str, Any], name: str, exclusive: str, stronger: Any) -> Bound | None:
    included, excluded = schema.get(name), schema.get(exclusive)
    if isinstance(excluded, bool):  # draft 4 and OpenAPI 3.0
        return None if included is None else (included, excluded)
    if included is None or excluded is None:
        value = included if excluded is None else excluded
        return None if value is None else (value, excluded is not None)
    value = stronger(included, excluded)
    return value, value == excluded


def _integers(low: Bound | None, high: Bound | None) -> dict[str, Any] | None:
    """Return the schema of the integers between two bounds; `None` if there are none."""
    found: dict[str, Any] = {"type": "integer"}
    least = -_INT64
    if low is not None:
        least = math.floor(low[0]) + 1 if low[1] else math.ceil(low[0])
        if least > _LARGEST:
            return None
        if least > -_INT64:
            found["minimum"] = least = _as_double(least, math.inf)
    if high is not None:
        most = math.ceil(high[0]) - 1 if high[1] else math.floor(high[0])
        if most < -_LARGEST:
            return None
        if most < _INT64:
            found["maximum"] = most = _as_double(most, -math.inf)
        if least > most:
            return None
    return found


def _as_double(value: int, towards: float) -> int:
    near = float(value)
    if (near < value) if towards > 0 else (near > value):
        near = math.nextafter(near, towards)
    return int(near)


def _numbers(low: Bound | None, high: Bound | None) -> list[dict[str, Any] | None]:
    """Return the schemas of the numbers between two bounds; beyond 2^53 only integers."""
    limit = float.fromhex("0x1.fffffffffffffp+1023")
    low = None if low is not None and low[0] <= -limit else low
    high = None if high is not None and high[0] >= limit else high
    found: list[dict[str, Any] | None] = []
    if low is not None and low[0] < -_EXACT:
        below = (-_EXACT, False)
        found.append(_integers(low, below if high is None or high[0] > -_EXACT else high))
        low = below
    if high is not None and high[0] > _EXACT:
        above = (_EXACT, False)
        found.append(_integers(above if low is None or low[0] < _EXACT else low, high))
        high = above
    if low is not None and high is not None:
        if low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1])):
            return found
        # The library admits an excluded 0 there.
        if low == (0, True) and high[0] < 1:
            low = (min(_SMALLEST, high[0]), False)
        if high == (0, True) and low[0] > -1:
            high = (max(-_SMALLEST, low[0]), False)
    number: dict[str, Any] = {"type": "number"}
    if low is not None:
        number["exclusiveMinimum" if low[1] else "minimum"] = low[0]
    if high is not None:
        number["exclusiveMaximum" if high[1] else "maximum"] = high[0]
    return [*found, number]
