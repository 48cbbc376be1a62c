"""Percentiles with one definition: type 7 of Hyndman and Fan (1996), the default of NumPy."""

import math
from collections.abc import Collection
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def percentile(values: Collection[float], percent: float) -> float:
    """Return a percentile, linearly interpolated between the two nearest values.

    Args:
        values: in any order.
        percent: from 0 to 100.

    Raises:
        ValueError: there are no values.
    """
    ordered = _ordered(values)
    rank = (len(ordered) - 1) * percent / 100
    low, high = math.floor(rank), math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def observed_percentiles(values: Collection[int], *percents: int) -> list[int]:
    """Return percentiles rounded up to the next observed value (`method="higher"` of NumPy).

    For sizes such as token lengths, where a value between two observed ones has no meaning.

    Raises:
        ValueError: there are no values.
    """
    ordered = _ordered(values)
    return [ordered[-(-(len(ordered) - 1) * percent // 100)] for percent in percents]


def _ordered(values: Collection[_Number]) -> list[_Number]:
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile needs values")
    return ordered
