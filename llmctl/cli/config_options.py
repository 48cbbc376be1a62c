"""How does a settings dataclass become options? One per field, helped by the field's docstring."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from llmctl.config.settings import ConfigSource, Setting
from llmctl.errors import ConfigError


def config_parameters(
    kind: type,
    *,
    aliases: Mapping[str, str],
    short: Mapping[str, str],
    variables: Mapping[str, str],
) -> list[inspect.Parameter]:
    """Return a Typer parameter for each field; what is not given is `None`.

    Args:
        spellings: other names -> fields; each becomes another spelling of the option.
        short: one-letter options by field.
        variables: environment variables by field.
    """
    docs, hints = _field_docs(kind), get_type_hints(kind)
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _option_type(hints[f.name]) | None,
                typer.Option(
                    *_names(f.name, hints[f.name], aliases, short),
                    help=_help(f, docs.get(f.name, "")),
                    envvar=variables.get(f.name),
                    show_default=False,
                ),
            ],
        )
        for f in fields(kind)
    ]


def collect_options(kind: type, context: typer.Context, values: Mapping[str, Any]) -> ConfigSource:
    """Return what was given by option or variable.

    Raises:
        ConfigError: one of `name=value` has no `=`.
    """
    hints = get_type_hints(kind)
    layer = {}
    for f in fields(kind):
        value = values.get(f.name)
        if value is None or value == []:
            continue
        if _is_mapping(hints[f.name]):
            of_text = get_args(hints[f.name])[1] is str
            value = dict(_pairs(f.name, value, of_text=of_text))
        source = context.get_parameter_source(f.name)
        variable = source is not None and source.name == "ENVIRONMENT"
        layer[f.name] = Setting(value, "variable" if variable else "option")
    return layer


def _names(name: str, hint: Any, aliases: Mapping[str, str], short: Mapping[str, str]) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if hint is bool or bool in get_args(hint):
        return [f"{option}/--no-{name.replace('_', '-')}"]
    others = [f"--{other}" for other, field in aliases.items() if field == name]
    return [option, *([short[name]] if name in short else []), *others]


def _option_type(hint: Any) -> Any:
    """Return what Typer takes for a field."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is tuple or _is_mapping(hint):
        return list[str]
    return hint


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _help(f: "Field[Any]", doc: str) -> str:
    if f.default is MISSING or f.default in (None, (), ""):
        return doc
    shown = {True: "yes", False: "no"}.get(f.default) if isinstance(f.default, bool) else f.default
    return f"{doc}  [default: {shown}]"


def _pairs(name: str, given: list[str], *, of_text: bool) -> Iterator[tuple[str, object]]:
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {text!r} has no `=`", hint=f"{option} name=value")
        if not of_text:
            with suppress(ValueError):
                value = json.loads(value)
        yield key.strip(), value


@cache
def _field_docs(kind: type) -> dict[str, str]:
    """Read the docstring below each field from the source; Python itself forgets them."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # no source is installed
        return {}
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    docs = {}
    for declared, text in pairwise(body):
        if (
            isinstance(declared, ast.AnnAssign)
            and isinstance(declared.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[declared.target.id] = " ".join(str(text.value.value).split())
    return docs
