"""Command-line options of a config dataclass: one per field, with the field's docstring as help."""

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Gt, Interval, Le, Lt

from llmctl.config.option import Option, field_options
from llmctl.config.settings import (
    ConfigSource,
    ResolvedConfig,
    Setting,
    build_config,
    read_config_file,
)
from llmctl.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

_CONFIG_HELP = "YAML file with any of the options below; the command line overrides it."
ConfigFileOpt = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE.yaml", help=_CONFIG_HELP)
]
LongConfigFileOpt = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.yaml", help=_CONFIG_HELP)
]
"""For a command that has another `-c`."""


def with_config_options(config_class: type) -> Callable[[Command], Command]:
    """Return a decorator that adds the options of a config dataclass to a command.

    Typer reads the options from the signature: those of the function, and in place of its
    `**values` one for each field. An option that is not given is `None`.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command).parameters.values()
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                *(p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD),
                *_parameters(config_class),
            ]
        )
        return command

    return decorate


def resolve_config(
    config_class: type[T], context: typer.Context, values: Mapping[str, Any], file: Path | None
) -> ResolvedConfig[T]:
    """Merge a YAML file and the command line into a config dataclass.

    Raises:
        ConfigError: one message with all errors, each with its option, or file and line.
    """
    sources = [read_config_file(file)] if file is not None else []
    return build_config(config_class, *sources, collect_options(config_class, context, values))


def collect_options(
    config_class: type, context: typer.Context, values: Mapping[str, Any]
) -> ConfigSource:
    """Return the values given by option or environment variable.

    Raises:
        ConfigError: an option is given under two names, or a `name=value` has no `=`.
    """
    hints = get_type_hints(config_class)
    settings = {}
    for field, option in field_options(config_class).items():
        names = [field, *(_alias_parameter(field, index) for index in range(len(option.aliases)))]
        given = [name for name in names if values.get(name) not in (None, [])]
        # A variable gives way to an option of another spelling.
        given = [n for n in given if not _is_variable(context, n)] or given
        if not given:
            continue
        value = values[given[0]]
        if isinstance(value, list):
            value = [item for name in given for item in values[name]]
        elif len(given) > 1:
            raise ConfigError(f"--{option.name} is given twice, under two names")
        if _is_mapping(hints[field]):
            as_text = get_args(hints[field])[1] is str
            value = dict(_pairs(option.name, value, as_text=as_text))
        is_variable = _is_variable(context, given[0])
        settings[field] = Setting(value, "variable" if is_variable else "option")
    return settings


def given_fields(config: ResolvedConfig[Any]) -> frozenset[str]:
    """Return the fields given by option or file."""
    return frozenset(field for field, origin in config.origins.items() if origin != "variable")


def _is_variable(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _alias_parameter(field: str, index: int) -> str:
    return f"{field}__alias{index}"


def _parameters(config_class: type) -> Iterator[inspect.Parameter]:
    docs = field_docs(config_class)
    hints = get_type_hints(config_class)
    ranges = get_type_hints(config_class, include_extras=True)
    options = field_options(config_class)
    for field in fields(config_class):
        option, hint = options[field.name], hints[field.name]
        help = option_help(field, option, docs.get(field.name, ""), ranges[field.name])
        yield _parameter(field.name, option, hint, _names(option, hint), help=help)
        for index, alias in enumerate(option.aliases):
            name = _alias_parameter(field.name, index)
            yield _parameter(name, option, hint, [f"--{alias}"], hidden=True)


def _parameter(
    name: str, option: Option, hint: Any, names: list[str], *, help: str = "", hidden: bool = False
) -> inspect.Parameter:
    kind = _option_type(hint) if option.parse is None else str
    info = typer.Option(
        *names,
        help=help,
        hidden=hidden,
        envvar=None if hidden else option.variable or None,
        metavar=option.metavar or _metavar(kind),
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def _metavar(kind: Any) -> str | None:
    """Return the type of one value for an option that may be repeated."""
    return f"<{get_args(kind)[0].__name__}>" if get_origin(kind) is list else None


def _names(option: Option, hint: Any) -> list[str]:
    if hint is bool or bool in get_args(hint):
        return [f"--{option.name}/--no-{option.name}"]
    return [f"--{option.name}", *([option.short] if option.short else [])]


def _option_type(hint: Any) -> Any:
    """Return the type of a field for Typer."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (item for item in get_args(hint) if item is not NoneType)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return list[int] if item is int else list[str]
    return list[str] if _is_mapping(hint) else hint


def option_type_name(hint: Any) -> str:
    """Return the type of a field in words, such as `int` or `none, 4bit or 8bit`."""
    if get_origin(hint) is Annotated:
        return option_type_name(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return option_type_name(next(item for item in get_args(hint) if item is not NoneType))
    if get_origin(hint) is Literal:
        *most, last = map(str, get_args(hint))
        return f"{', '.join(most)} or {last}"
    if get_origin(hint) is tuple:
        return f"list of {option_type_name(get_args(hint)[0])}"
    return "mapping" if _is_mapping(hint) else str(hint.__name__)


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def option_help(field: "Field[Any]", option: Option, doc: str, hint: Any) -> str:
    """Return the help of an option: docstring, default and range."""
    default = option.default
    if not default and field.default is not MISSING and field.default not in (None, (), ""):
        default = _default_text(field.default, option)
    notes = [f"default: {default}"] if default else []
    if bounds := _range_text(hint):
        notes.append(bounds)
    return f"{doc}  [{'; '.join(notes)}]" if notes else doc


def _default_text(value: object, option: Option) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and option.metavar == "SIZE":
        return f"{value // 2**20}MiB"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _range_text(hint: Any) -> str:
    low = high = ""
    for item in _annotations(hint):
        match item:
            case Interval():
                low = "" if item.ge is None else f"{item.ge}<="
                is_bounded = isinstance(item.le, float | int) and item.le < 2**31
                high = f"<={item.le}" if is_bounded else ""
            case Ge():
                low = f"{item.ge}<="
            case Gt():
                low = f"{item.gt}<"
            case Le():
                high = f"<={item.le}"
            case Lt():
                high = f"<{item.lt}"
    if low and not high:
        bound = low.rstrip("<=")
        return f"x>={bound}" if low.endswith("=") else f"x>{bound}"
    return f"{low}x{high}" if high else ""


def _annotations(hint: Any) -> Iterator[object]:
    if get_origin(hint) is Annotated:
        inner, *items = get_args(hint)
        yield from items
        yield from _annotations(inner)
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _annotations(part)


def _pairs(name: str, given: list[str], *, as_text: bool) -> Iterator[tuple[str, object]]:
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--{name} {text!r} has no `=`", hint=f"--{name} name=value")
        if not as_text:
            with suppress(ValueError):
                value = json.loads(value)
        yield key.strip(), value


@cache
def field_docs(config_class: type) -> dict[str, str]:
    """Return the docstrings below the fields, from the source; they are not kept at run time."""
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # no source is installed
            continue
        (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        for declared, text in pairwise(body):
            if (
                isinstance(declared, ast.AnnAssign)
                and isinstance(declared.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                docs[declared.target.id] = " ".join(str(text.value.value).split())
    return docs
