"""Names and texts within the limits of MLflow."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from llmctl.errors import ConfigError

KEY_CHARS: Final = 250
PARAM_CHARS: Final = 6000
TAG_CHARS: Final = 8000
"""MLflow's limits (`mlflow.utils.validation`); the store rejects longer texts."""

_FORBIDDEN = re.compile(r"[^\w.\- /]")
_CUT = "… (truncated; complete text in the artifacts of the run)"


@lru_cache(maxsize=4096)
def sanitize_key(name: str) -> str:
    """Return a valid name: letters, digits, `_`, `-`, `.`, spaces, and `/` between parts."""
    parts = (part.strip() for part in _FORBIDDEN.sub("_", str(name)).split("/"))
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_CHARS] or "_"


class KeyNames:
    """Valid names for the metrics, parameters and tags of one run, each different."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def assign(self, names: Iterable[str]) -> dict[str, str]:
        """Return the valid name of each name.

        If several names have the same valid name (`C#` and `C+`), the ones that had to be changed
        get a digest of the original as suffix.
        """
        names = [str(name) for name in names]
        new = {name: sanitize_key(name) for name in names if name not in self._keys}
        if new:
            counts, used = Counter(new.values()), set(self._keys.values())
            for name, key in new.items():
                if key in used or (counts[key] > 1 and name != key):
                    digest = blake2b(valid_text(name).encode(), digest_size=3).hexdigest()
                    key = f"{key[: KEY_CHARS - 7]}-{digest}"
                self._keys[name] = key
        return {name: self._keys[name] for name in names}


def valid_text(text: str) -> str:
    """Return a text that UTF-8 can encode: bytes of a path that are not UTF-8 become `\\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_tag(name: str, text: str) -> None:
    """Raise `ConfigError` for a tag that the store would reject or truncate."""
    plain = name.replace(":", "_")
    if sanitize_key(plain) != plain:
        raise ConfigError(
            f"the tag name {name!r} is not valid",
            hint="letters, digits, _ - . : and spaces are allowed, and / between parts; "
            f"at most {KEY_CHARS} characters",
        )
    if len(text) > TAG_CHARS:
        raise ConfigError(
            f"the text of {name!r} has {len(text):,} characters; the limit is {TAG_CHARS:,}",
            hint="put it into a file, and give the name of the file",
        )


def flatten_params(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return parameters as texts; a nested mapping becomes `outer.inner`, None is left out."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten_params(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = _text(value)
    return flat


def truncate(text: str, limit: int) -> str:
    """Return a valid text of at most `limit` characters; a longer one ends with a note."""
    text = valid_text(text)
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, set | frozenset):
        return json.dumps(sorted(map(str, value)), ensure_ascii=False)
    return str(value)
