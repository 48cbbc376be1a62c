"""Formats of strings as regular expressions.

Sources: RFC 3339 (dates, times, durations), RFC 1123 (host names), RFC 9562 (UUIDs); the names that
pydantic, zod and OpenAPI write.
"""

import re
from typing import Any

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_LEAP_YEAR = (
    r"(?:[1-9]\d(?:0[48]|[2468][048]|[13579][26])|0[1-9](?:0[48]|[2468][048]|[13579][26])"
    r"|00(?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26]|0[48])00)"
)
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_ZONE = r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = "[0-9a-fA-F]{1,4}"
_IPV6 = "(?:" + "|".join([rf"(?:{_GROUP}:){{7}}{_GROUP}", rf"(?:{_GROUP}:){{1,6}}:{_GROUP}"]) + ")"
_PREFIX4, _PREFIX6 = r"(?:[12]?\d|3[0-2])", r"(?:12[0-8]|1[01]\d|[1-9]?\d)"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,59}[A-Za-z0-9])?"
_N = r"\d{1,9}"
_TIME_OF_DURATION = rf"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DATE_OF_DURATION = rf"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_HOST = rf"{_LABEL}(?::\d{{1,4}})?"
_B64, _B64URL = "[A-Za-z0-9+/]", "[A-Za-z0-9_-]"


def _uuid(version: str) -> str:
    return (
        rf"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-{version}[0-9a-fA-F]{{3}}-"
        r"[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
    )


PATTERNS = {
    "date": _DATE,
    "time": _CLOCK + _ZONE,
    "date-time": f"{_DATE}T{_CLOCK}{_ZONE}",
    "duration": rf"P(?:{_N}W|{_DATE_OF_DURATION}(?:{_TIME_OF_DURATION})?|{_TIME_OF_DURATION})",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,3}}",
    "ipv4": _IPV4,
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "multi-host-uri": rf"[a-z][a-z0-9+.-]{{0,20}}://{_HOST}(?:,{_HOST}){{0,4}}(?:/[A-Za-z0-9_-]*)?",
    **{f"uuid{n}": _uuid(str(n)) for n in range(1, 9)},
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipv4interface": f"{_IPV4}(?:/{_PREFIX4})?",
    "ipv6interface": f"{_IPV6}(?:/{_PREFIX6})?",
    "ipvanyinterface": f"(?:{_IPV4}|{_IPV6})",
    # A network with bits set in its host part is refused by readers: only whole addresses.
    "ipv4network": f"{_IPV4}/32",
    "ipv6network": f"{_IPV6}/128",
    "ipvanynetwork": f"(?:{_IPV4}/32|{_IPV6}/128)",
    "cidrv4": f"{_IPV4}/{_PREFIX4}",
    "cidrv6": f"{_IPV6}/{_PREFIX6}",
    "jwt": rf"eyJ{_B64URL}{{13,}}\.eyJ{_B64URL}{{5,}}\.{_B64URL}{{10,}}",
    "e164": r"\+[1-9]\d{6,14}",
    "base64": f"(?:{_B64}{{4}})*(?:{_B64}{{2}}==|{_B64}{{3}}=)?",
    "base64url": f"(?:{_B64URL}{{4}})*(?:{_B64URL}{{2,3}})?",
    "ulid": "[0-7][0-9A-HJKMNP-TV-Z]{25}",
    "nanoid": "[A-Za-z0-9_-]{21}",
    "cuid": "c[0-9a-z]{8,}",
    "cuid2": "[a-z][0-9a-z]+",
    "xid": "[0-9a-v]{20}",
    "ksuid": "[A-Za-z0-9]{27}",
    "emoji": r"[\x{1F300}-\x{1F64F}\x{1F680}-\x{1F6C5}\x{1F90C}-\x{1F93A}]+",
    "mac": "(?:[0-9A-F]{2}:){5}[0-9A-F]{2}",
    "lowercase": "[^A-Z]*",
    "uppercase": "[^a-z]*",
}
"""Formats that are defined here; the values match the whole string."""

LIBRARY = ("email", "ipv6", "uri")
"""Formats that the grammar library defines."""

UNRESTRICTED = (
    *("binary", "password", "byte", "path", "file-path", "directory-path"),
    *("starts_with", "ends_with", "includes", "float", "double", "decimal"),
    *(f"{kind}{size}" for kind in ("int", "uint") for size in (8, 16, 32, 64)),
)
"""Names without a rule of their own: annotations of pydantic, zod and OpenAPI."""

_UNSUPPORTED = (
    *("iri", "iri-reference", "idn-email", "idn-hostname", "uri-reference", "uri-template"),
    *("json-pointer", "relative-json-pointer", "regex"),
)
"""Formats of JSON Schema that are refused even beside a pattern."""

_ZOD_PATTERNS = {
    "hostname": r"^(?=.{1,253}\.?$)[a-zA-Z0-9](?:",
    "duration": r"^P(?:(\d+W)|(?!.*W)",
    "emoji": r"^(?=[\s\S]*[\p{Extended_Pictographic}",
}
"""Beginnings of zod's own patterns with look-around, which `PATTERNS` replaces."""


def string_keywords(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Return `format` and `pattern` as keywords that are enforced together.

    Raises:
        ValueError: the format is unknown, or the pattern is not a text.
    """
    pattern, name = schema.get("pattern"), schema.get("format")
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(f"'pattern' at {path} is not a string")
    found = {} if pattern is None else {"pattern": without_nul(pattern)}
    if name is None or name in UNRESTRICTED:
        return found
    if name in LIBRARY:
        return found | {"format": name}
    if name not in PATTERNS:
        known = ", ".join(sorted([*PATTERNS, *LIBRARY]))
        if pattern is not None and name not in _UNSUPPORTED:
            return found  # the pattern says what the text is
        raise ValueError(f"'format' at {path} is {str(name)[:60]!r}; known are {known}")
    own = f"^(?:{PATTERNS[name]})$"
    if pattern is None or pattern.startswith(_ZOD_PATTERNS.get(name, "\0")):
        return {"pattern": own}
    return {"allOf": [found, {"pattern": own}]}


def without_nul(pattern: str) -> str:
    r"""Return the regular expression with `\x00` in each negated class.

    For a class of all control characters the library also allows the escapes of `"` and `\`, even
    if the class excludes these two.
    """
    return re.sub(r"\\.|\[\^([\]-]?)", _with_nul, pattern, flags=re.DOTALL)


def _with_nul(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    # A bracket or hyphen at the start stands for itself.
    return r"[^\x00" + (f"\\{match[1]}" if match[1] else "")
