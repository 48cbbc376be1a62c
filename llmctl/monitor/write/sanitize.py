"""What a setting, a name or a text looks like in the store: its characters and its length."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from llmctl.errors import ConfigError

KEY_CHARS: Final = 250
PARAM_CHARS: Final = 6000
TAG_CHARS: Final = 8000
"""MLflow's limits (`mlflow.utils.validation`); what is longer is refused by the store."""

_FOREIGN = re.compile(r"[^\w.\- /]")
_CUT = "… (cut; whole in the files of the run)"


@lru_cache(maxsize=4096)
def sanitize_key(name: str) -> str:
    """Make a name that every store takes: letters, digits, `_`, `-`, `.`, space, and `/` inside."""
    parts = (part.strip() for part in _FOREIGN.sub("_", str(name)).split("/"))
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:KEY_CHARS] or "_"


def check_tag(name: str, text: str) -> None:
    """Raise `ConfigError` for a tag that the store would refuse or cut."""
    plain = name.replace(":", "_")
    if sanitize_key(plain) != plain:
        raise ConfigError(
            f"the tag {name!r} has a name that no store takes",
            hint="letters, digits, _ - . : and spaces are allowed, and / inside; "
            f"at most {KEY_CHARS} characters",
        )
    if len(text) > TAG_CHARS:
        raise ConfigError(
            f"the text of {name!r} has {len(text):,} characters; a store takes {TAG_CHARS:,}",
            hint="keep it in a file, and name that",
        )


def flatten_params(params: Mapping[str, object]) -> dict[str, str]:
    """Write settings as texts: a mapping inside becomes `outer.inner`, None is left out."""
    rows: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            rows |= {
                f"{sanitize_key(name)}.{inner}": text
                for inner, text in flatten_params(value).items()
            }
        elif value is not None:
            rows[sanitize_key(name)] = _text(value)
    return rows


def truncate(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters that says so when it was longer."""
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, set | frozenset):
        return json.dumps(sorted(map(str, value)), ensure_ascii=False)
    return str(value)
