"""Command-line names of config fields, as annotations of their types."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, get_args, get_type_hints

_BYTE_UNITS: Final = {
    "": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Command-line form of a config field: `Annotated[int, Option(short="-p")]`."""

    name: str = ""
    """Long name without dashes; by default the field's name. Also a key of the YAML file."""
    aliases: tuple[str, ...] = ()
    """Other long names, which the help does not list. Also keys of the YAML file."""
    short: str = ""
    """Short name with its dash."""
    variable: str = ""
    """Environment variable, which an option overrides."""
    metavar: str = ""
    parse: Callable[[str], object] | None = None
    """Converts a text of the command line or the file; raises `ValueError`."""
    default: str = ""
    """What applies if the field is `None`, for the help."""


def field_options(config_class: type) -> Mapping[str, Option]:
    """Return the option of every field of a config dataclass, with its name filled in."""
    hints = get_type_hints(config_class, include_extras=True)
    options = {}
    for field in fields(config_class):
        annotations = [item for item in get_args(hints[field.name]) if isinstance(item, Option)]
        option = annotations[0] if annotations else Option()
        options[field.name] = replace(option, name=option.name or field.name.replace("_", "-"))
    return options


def field_keys(config_class: type) -> dict[str, str]:
    """Return the fields of a config dataclass by every key that a YAML file may use for them."""
    keys = {}
    for field, option in field_options(config_class).items():
        for name in (field, option.name, *option.aliases):
            keys[name.replace("-", "_")] = field
    return keys


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `512MiB` or `8GB`. Raises `ValueError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _BYTE_UNITS:
        raise ValueError("not a size; write 512MiB, 8GiB or 8GB")
    return int(float(match[1]) * _BYTE_UNITS[match[2]])
