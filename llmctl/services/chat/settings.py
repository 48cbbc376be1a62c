"""What can be set in the middle of a conversation, and what does a person's word for it mean?"""

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

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
"""What `/set` calls it -> field of `SamplingParams`."""
_WHOLE: Final = ("top_k", "max_tokens", "min_tokens", "seed")
UNSET: Final = ("default", "none")


def set_parameter(sampling: SamplingParams, name: str, value: str) -> SamplingParams:
    """Return the parameters with one set, or with `default` given back to the model.

    Raises:
        ConfigError: no such setting, or no such value; the message has the limits.
    """
    name = name.lower().replace("-", "_")
    name = {"max_new_tokens": "max_tokens"}.get(name, name)
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=1)
        raise ConfigError(
            f"there is no setting {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            hint=f"one of: {', '.join(PARAMETERS)}",
        )
    field = PARAMETERS[name]
    chosen: dict[str, Any] = {field: None if value.lower() in UNSET else _read(name, value)}
    try:
        return replace(sampling, **chosen)
    except RequestError as error:
        raise ConfigError(str(error).replace(field, name), hint=error.hint) from error


def _read(name: str, value: str) -> object:
    if name == "stop":
        return _texts(value)
    whole = name in _WHOLE
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise ConfigError(
            f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number "
            f"{describe_range(name)}",
            hint=f"/set {name} default gives it back to the model",
        ) from None


def _texts(value: str) -> tuple[str, ...]:
    """Read one text, or several as a JSON list; in quotes it may have `\\n`."""
    if value[:1] in '["':
        try:
            read = json.loads(value)
        except ValueError as error:
            raise ConfigError(
                f"stop is no JSON: {error}", hint='such as ["END", "\\n\\n"]'
            ) from error
        texts = [read] if isinstance(read, str) else read
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError("stop is a text or a JSON list of texts")
        return tuple(texts)
    return (value,)


def describe_range(name: str) -> str:
    """Say between which bounds a setting may be."""
    field = PARAMETERS[name]
    if field not in SAMPLING_RANGES:
        return ""
    low, high = SAMPLING_RANGES[field]
    return f"from {low:g} on" if high >= 2**31 else f"between {low:g} and {high:g}"


def list_parameters(sampling: SamplingParams) -> dict[str, str]:
    """Return every setting with its value, and where nobody chose one, what applies then."""
    shown = {}
    for name, field in PARAMETERS.items():
        value, default = getattr(sampling, field), getattr(DEFAULT_SAMPLING, field)
        if value is not None:
            written = json.dumps(value, ensure_ascii=False) if name == "stop" else f"{value:g}"
            shown[name] = written if name != "seed" else str(value)
        elif default is None:
            shown[name] = {"max_tokens": "what the context holds", "seed": "a new one"}.get(
                name, "none"
            )
        else:
            shown[name] = f"the model's, else {default:g}"
    return shown


def read_grammar(source: str) -> Grammar:
    """Return what holds replies to a JSON schema: a file's, or one written out; `-` is any JSON.

    Raises:
        ConfigError: the file cannot be read, or it is no schema.
    """
    if source == "-":
        return Grammar("json_object")
    text, where = source, "the schema"
    if not source.lstrip().startswith("{"):
        where = source
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the schema {source}: {getattr(error, 'strerror', None) or error}",
                hint="name a file with a JSON schema, or write it out: '{\"type\": ...}'",
            ) from error
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{where} is no JSON schema: it is no object")
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
