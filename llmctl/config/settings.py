"""What did a person choose, and where? Options, files and defaults become one checked value."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, get_origin, get_type_hints

from llmctl.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")


class Setting(NamedTuple):
    """One value that was chosen."""

    value: object
    origin: str
    """Where: `option`, `LLMCTL_MODEL`, `finetune.yaml:12`, ..."""


ConfigSource = Mapping[str, Setting]
"""What one place says, by the names it uses."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig(Generic[T]):
    """The settings of a command, and where each one was chosen."""

    values: T
    origins: Mapping[str, str]
    """By field; what is not in it is the default."""


def read_config_file(path: Path) -> ConfigSource:
    """Read the top of a YAML (or JSON) file.

    Raises:
        ConfigError: it cannot be read, is no YAML, no mapping, or says a thing twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    loader = yaml.SafeLoader(text)
    found: dict[str, Setting] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}:1: the file holds no settings", hint="write `name: value`")
        for key_node, value_node in node.value:
            origin = f"{path}:{key_node.start_mark.line + 1}"
            key = str(loader.construct_object(key_node))
            if key in found:
                raise ConfigError(f"{origin}: {key} was set before, at {found[key].origin}")
            value = loader.construct_object(value_node, deep=True)
            found[key] = Setting(value, origin)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error
    finally:
        loader.dispose()
    return found


def build_config(
    kind: type[T], *layers: ConfigSource, aliases: Mapping[str, str] | None = None
) -> ResolvedConfig[T]:
    """Make a settings dataclass of what was chosen, the last layer first in rank.

    Args:
        spellings: other names that are understood -> fields.

    Raises:
        ConfigError: one message with everything that is wrong in all layers.
    """
    from pydantic import TypeAdapter, ValidationError

    known = get_type_hints(kind)
    chosen: dict[str, Setting] = {}
    problems: list[str] = []
    names = [*known, *(aliases or {})]
    for layer in layers:
        named: dict[str, str] = {}
        for written, setting in layer.items():
            name = (aliases or {}).get(written, written)
            if name not in known:
                problems.append(f"{setting.origin}: {_unknown(written, names)}")
            elif name in named:
                problems.append(f"{setting.origin}: {written} is {named[name]}, which is set too")
            elif setting.value is not None:
                named[name] = written
                chosen[name] = setting
    given = {name: _listed(known[name], setting.value) for name, setting in chosen.items()}
    try:
        values: T = TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        problems += [_problem(details, chosen) for details in error.errors()]
    except ConfigError as error:
        if not problems:
            raise
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems), hint="nothing has been started")
    return ResolvedConfig(values, {name: setting.origin for name, setting in chosen.items()})


def _listed(kind: Any, value: object) -> object:
    """Let one word stand where a list may."""
    return [value] if get_origin(kind) is tuple and isinstance(value, str) else value


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"there is no setting {name}" + (f"; did you mean {near[0]}?" if near else "")


def _problem(details: "ErrorDetails", chosen: Mapping[str, Setting]) -> str:
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is not given; give it as --{name.replace('_', '-')}, or in the file"
    origin = chosen[name].origin if name in chosen else "default"
    what = details["msg"].replace("Input should be", "must be")
    return f"{origin}: {name} is {chosen[name].value!r}: {what}" if name in chosen else what
