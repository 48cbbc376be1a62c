"""Sampling parameters and JSON schema of a chat, as `/set` and `/json` read and show them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError, RequestError
from llmctl.types import DEFAULT_SAMPLING, SAMPLING_RANGES, Grammar, SamplingParams

PARAMETERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}
"""Name in `/set` -> field of `SamplingParams`."""
_INTEGERS: Final = ("top_k", "max_tokens", "min_tokens", "seed")
_UNSET_LABELS: Final = {"max_tokens": "what the context holds", "seed": "random"}
UNSET: Final = ("default", "none")
"""Values that unset a parameter."""


def parameter_name(name: str) -> str:
    """Return the name of a parameter as `PARAMETERS` has it, from any accepted spelling.

    Raises:
        ConfigError: no such parameter exists.
    """
    name = name.lower().replace("-", "_")
    name = {"max_new_tokens": "max_tokens"}.get(name, name)
    if name not in PARAMETERS:
        near = did_you_mean(name, PARAMETERS)
        raise ConfigError(
            f"there is no parameter {name!r}" + (f"; did you mean {near}?" if near else ""),
            hint=f"one of: {', '.join(PARAMETERS)}",
        )
    return name


def set_parameter(sampling: SamplingParams, name: str, value: str) -> SamplingParams:
    """Return the parameters with one of them set, or unset by `default`.

    Raises:
        ConfigError: no such parameter, or the value is invalid; the message has the range.
    """
    name = parameter_name(name)
    field = PARAMETERS[name]
    change: dict[str, Any] = {field: None if value.lower() in UNSET else _parse(name, value)}
    try:
        return replace(sampling, **change)
    except RequestError as error:
        raise ConfigError(str(error).replace(field, name), hint=error.hint) from error


def _parse(name: str, value: str) -> object:
    if name == "stop":
        return _parse_stop(value)
    kind = int if name in _INTEGERS else float
    try:
        return kind(value)
    except ValueError:
        number = "an integer" if kind is int else "a number"
        raise ConfigError(
            f"{name} is {value!r}; it must be {number} {describe_range(name)}",
            hint=f"/set {name} default unsets it",
        ) from None


def _parse_stop(value: str) -> tuple[str, ...]:
    """Parse one stop string, or a JSON string or list, which may contain `\\n`."""
    if not value.startswith(("[", '"')):
        return (value,)
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ConfigError(
            f"stop is not valid JSON: {error}", hint='such as ["END", "\\n\\n"]'
        ) from error
    texts = [parsed] if isinstance(parsed, str) else parsed
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError("stop must be a string or a JSON list of strings")
    return tuple(texts)


def describe_range(name: str) -> str:
    """Return the valid range of a parameter in words; empty if it has none."""
    field = PARAMETERS[name]
    if field not in SAMPLING_RANGES:
        return ""
    low, high = SAMPLING_RANGES[field]
    return f"of at least {low:g}" if high >= 2**31 else f"between {low:g} and {high:g}"


def list_parameters(sampling: SamplingParams) -> dict[str, str]:
    """Return every parameter with its value, or with what applies if it is not set."""
    shown = {}
    for name, field in PARAMETERS.items():
        value, default = getattr(sampling, field), getattr(DEFAULT_SAMPLING, field)
        if value is not None:
            shown[name] = (
                json.dumps(value, ensure_ascii=False) if name in ("stop", "seed") else f"{value:g}"
            )
        elif default is None:
            shown[name] = _UNSET_LABELS.get(name, "none")
        else:
            shown[name] = f"the model's, else {default:g}"
    return shown


def read_grammar(source: str) -> Grammar:
    """Return the grammar of a JSON schema, given as a file or as JSON; `-` is any JSON object.

    Raises:
        ConfigError: the file cannot be read, or it is not a JSON schema.
    """
    if source == "-":
        return Grammar("json_object")
    text, name = source, "the schema"
    if not source.lstrip().startswith("{"):
        name = source
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the schema {source}: {getattr(error, 'strerror', None) or error}",
                hint="name a file with a JSON schema, or write the schema: '{\"type\": ...}'",
            ) from error
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{name} is not a JSON schema: it is not an object")
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
