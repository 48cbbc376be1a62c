"""Merging of options, configuration files and defaults into a validated config dataclass."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, get_origin, get_type_hints

from llmctl.config.option import Option, field_keys, field_options
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")


class Setting(NamedTuple):
    """A value and its source."""

    value: object
    origin: str
    """`option`, `LLMCTL_MODEL`, `finetune.yaml:12`, ..."""


ConfigSource = Mapping[str, Setting]
"""The settings of one source, by field name or alias."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig(Generic[T]):
    """A config and the source of each value."""

    values: T
    origins: Mapping[str, str]
    """By field; fields that are missing here have their default."""


def read_config_file(path: Path) -> ConfigSource:
    """Read the top-level mapping of a YAML or JSON file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, is not a mapping, or sets a key twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    loader = yaml.SafeLoader(text)
    settings: dict[str, Setting] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path}:1: the file is not a mapping of settings", hint="write `name: value`"
            )
        for key_node, value_node in node.value:
            origin = f"{path}:{key_node.start_mark.line + 1}"
            key = str(loader.construct_object(key_node))
            if key in settings:
                raise ConfigError(f"{origin}: {key} is already set at {settings[key].origin}")
            value = loader.construct_object(value_node, deep=True)
            settings[key] = Setting(value, origin)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error
    finally:
        loader.dispose()
    return settings


def build_config(config_class: type[T], *sources: ConfigSource) -> ResolvedConfig[T]:
    """Merge settings into a config dataclass and validate it.

    Args:
        config_class: a dataclass; its field types are the types of the settings.
        sources: in increasing priority. A value of `None` is not given.

    Raises:
        ConfigError: one message with every error of all sources.
    """
    from pydantic import TypeAdapter, ValidationError

    fields = get_type_hints(config_class)
    keys = field_keys(config_class)
    settings: dict[str, Setting] = {}
    options = field_options(config_class)
    errors: list[str] = []
    for source in sources:
        names: dict[str, str] = {}  # field -> name in this source
        for name, setting in source.items():
            field = keys.get(name.replace("-", "_"), name)
            if field not in fields:
                errors.append(f"{setting.origin}: {_unknown(name, list(keys))}")
            elif field in names:
                errors.append(f"{setting.origin}: {name} is {names[field]}, which is set too")
            elif setting.value is not None:
                names[field] = name
                try:
                    settings[field] = _parse(setting, options[field])
                except ValueError as error:
                    errors.append(_invalid(field, options[field], setting, str(error)))
    values = {name: _as_list(fields[name], setting.value) for name, setting in settings.items()}
    try:
        config: T = TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        errors += [_error_message(config_class, details, settings) for details in error.errors()]
    except ConfigError as error:
        if not errors:
            raise
        errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(errors), hint="nothing has been started")
    return ResolvedConfig(config, {name: setting.origin for name, setting in settings.items()})


def _as_list(kind: Any, value: object) -> object:
    """Accept one string for a tuple of strings."""
    return [value] if get_origin(kind) is tuple and isinstance(value, str) else value


def _unknown(name: str, known: list[str]) -> str:
    near = did_you_mean(name.replace("-", "_"), known)
    return f"there is no setting {name}" + (f"; did you mean {near}?" if near else "")


def _parse(setting: Setting, option: Option) -> Setting:
    if option.parse is None or not isinstance(setting.value, str):
        return setting
    return setting._replace(value=option.parse(setting.value))


def _error_message(
    config_class: type, details: "ErrorDetails", settings: Mapping[str, Setting]
) -> str:
    options = field_options(config_class)
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is required: give --{options[name].name}, or set it in the file"
    message = details["msg"].replace("Input should be", "must be")
    return _invalid(name, options[name], settings[name], message) if name in settings else message


def _invalid(field: str, option: Option, setting: Setting, message: str) -> str:
    names = {"option": f"--{option.name}", "variable": option.variable}
    name = names.get(setting.origin, f"{setting.origin}: {field}")
    return f"{name} is {setting.value!r}: {message}"
