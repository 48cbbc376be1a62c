"""How does a value that JSON has no word for travel as JSON, and come back as it was?

Columns of Parquet files hold bytes, times and decimals too. Nobody learns from them, and nobody
should lose them.
"""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

_KEY = "$llmctl"
_MARK = b'{"$llmctl": ["'


def _datetime(text: str) -> datetime:
    """Read ISO 8601; a zone's name may stand after it (RFC 9557): `...+09:00[Asia/Tokyo]`."""
    text, _, zone = text.removesuffix("]").partition("[")
    moment = datetime.fromisoformat(text)
    return moment.astimezone(ZoneInfo(zone)) if zone else moment


def _timestamp(text: str) -> object:
    """Return a moment; where it has no zone by the nanosecond, as Python's type cannot."""
    if _datetime(text).tzinfo is not None:
        return _datetime(text)
    import numpy as np

    return np.datetime64(text, "ns")


_BACK: dict[str, Callable[[str], object]] = {
    "bytes": base64.b64decode,
    "datetime": _datetime,
    "Timestamp": _timestamp,  # of pandas: what Arrow makes of nanoseconds
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda seconds: timedelta(seconds=float(seconds)),
    "Decimal": Decimal,
}
"""Name of a type -> what makes a value of it from what `_tagged` wrote."""


def to_json(value: object) -> bytes:
    """Return JSON on one line, from which `from_json` gives the value back."""
    return json.dumps(value, ensure_ascii=False, default=_tagged).encode(errors="replace")


def from_json(raw: bytes) -> Any:
    """Return the value that `to_json` was given."""
    return json.loads(raw, object_hook=_restored if _MARK in raw else None)


def to_standard_json(raw: bytes) -> bytes:
    """Turn what `to_json` returned into JSON for others: base64, ISO 8601, seconds, digits."""
    if _MARK not in raw:
        return raw
    return json.dumps(json.loads(raw, object_hook=_text_alone), ensure_ascii=False).encode()


def value_as_text(value: object) -> str:
    """Write a value that JSON has no word for as text."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case timedelta():
            return str(value.total_seconds())
        case date() | time():
            return value.isoformat()
    return str(value)


def _tagged(value: object) -> object:
    """Say what a value is, beside its text; of a class that nobody foresaw, the text alone."""
    kind = next((each.__name__ for each in type(value).__mro__ if each.__name__ in _BACK), None)
    text = value_as_text(value)
    zone = getattr(getattr(value, "tzinfo", None), "key", None)
    if zone is not None:  # an offset from UTC would not do: half of the year it is another one
        text += f"[{zone}]"
    return text if kind is None else {_KEY: [kind, text]}


def _restored(found: dict[str, Any]) -> object:
    match found.get(_KEY):
        case [str(kind), str(text)] if kind in _BACK and len(found) == 1:
            # It may be a row of somebody's that looks like ours.
            with suppress(ValueError, ArithmeticError, KeyError):
                return _BACK[kind](text)
    return found


def _text_alone(found: dict[str, Any]) -> object:
    return found if _restored(found) is found else found[_KEY][1].partition("[")[0]
