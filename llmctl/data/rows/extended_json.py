"""JSON with tagged values for the types that JSON lacks: bytes, dates, times and decimals.

Columns of Parquet files have such values. Training ignores them; operations on rows keep them.
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
_PREFIX = b'{"$llmctl": ["'


def _datetime(text: str) -> datetime:
    """Parse ISO 8601, optionally followed by a zone name (RFC 9557): `...+09:00[Asia/Tokyo]`."""
    text, _, zone = text.removesuffix("]").partition("[")
    moment = datetime.fromisoformat(text)
    return moment.astimezone(ZoneInfo(zone)) if zone else moment


def _timestamp(text: str) -> object:
    """Parse ISO 8601; without a zone to `numpy.datetime64`, which keeps nanoseconds."""
    if _datetime(text).tzinfo is not None:
        return _datetime(text)
    import numpy as np

    return np.datetime64(text, "ns")


_DECODERS: dict[str, Callable[[str], object]] = {
    "bytes": base64.b64decode,
    "datetime": _datetime,
    "Timestamp": _timestamp,  # of pandas, as Arrow returns nanoseconds
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda seconds: timedelta(seconds=float(seconds)),
    "Decimal": Decimal,
}
"""Type name -> the function that restores a value from the text that `_tagged` wrote."""


def to_json(value: object) -> bytes:
    """Encode a value as JSON on one line, from which `from_json` restores it."""
    return json.dumps(value, ensure_ascii=False, default=_tagged).encode(errors="replace")


def from_json(raw: bytes) -> Any:
    """Decode what `to_json` returned."""
    return json.loads(raw, object_hook=_restored if _PREFIX in raw else None)


def to_standard_json(raw: bytes) -> bytes:
    """Replace the tagged values in the output of `to_json` with plain text."""
    if _PREFIX not in raw:
        return raw
    return json.dumps(json.loads(raw, object_hook=_untagged), ensure_ascii=False).encode()


def value_as_text(value: object) -> str:
    """Write a value of a type that JSON lacks as text: base64, ISO 8601, seconds or digits."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case timedelta():
            return str(value.total_seconds())
        case date() | time():
            return value.isoformat()
    return str(value)


def _tagged(value: object) -> object:
    """Return the type name and text of a value; only the text for an unknown type."""
    kind = next((each.__name__ for each in type(value).__mro__ if each.__name__ in _DECODERS), None)
    text = value_as_text(value)
    zone = getattr(getattr(value, "tzinfo", None), "key", None)
    if zone is not None:  # the offset from UTC alone loses daylight saving time
        text += f"[{zone}]"
    return text if kind is None else {_KEY: [kind, text]}


def _restored(value: dict[str, Any]) -> object:
    match value.get(_KEY):
        case [str(kind), str(text)] if kind in _DECODERS and len(value) == 1:
            # A row of the user may look like a tagged value.
            with suppress(ValueError, ArithmeticError, KeyError):
                return _DECODERS[kind](text)
    return value


def _untagged(value: dict[str, Any]) -> object:
    return value if _restored(value) is value else value[_KEY][1].partition("[")[0]
