"""Translation of pydantic's validation errors into OpenAI's error format."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError

from llmctl.errors import RequestError
from llmctl.server.schemas.base import ErrorBody, shorten_path

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "string_or_array": "one of a string or an array",
    "string_or_object": "one of a string or an object",
}

_GOT: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}

_BOUNDS = {
    "less_than_equal": ("le", "above maximum", "above_max", "<="),
    "greater_than_equal": ("ge", "below minimum", "below_min", ">="),
}


def first_validation_error(failure: RequestValidationError) -> ErrorBody:
    """Return the first error of a request body in OpenAI's words."""
    error = failure.errors()[0]
    kind, location = error["type"], error["loc"][1:]
    if kind == "json_invalid":
        return _not_json(error["ctx"]["error"])
    if not location and kind == "missing":
        return _not_json("it is empty")
    if not location and isinstance(error["input"], bytes):
        return _error_body("The Content-Type of the body must be application/json.", None, None)
    return _field_error(kind, _path(location, failure.body), error)


def _field_error(kind: str, param: str, error: Mapping[str, Any]) -> ErrorBody:
    value, context = error["input"], error.get("ctx", {})
    if kind.startswith("union_tag"):  # concerns the discriminator, but is located at its object
        discriminator = context["discriminator"].strip("'")
        # The discriminator of items is a function, which reads their type.
        param = f"{param}.{'type' if discriminator.endswith('()') else discriminator}"
    is_argument = param == error["loc"][-1]
    param = shorten_path(param) or ""
    match kind:
        case "missing" | "union_tag_not_found":
            return _error_body(
                f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
            )
        case "extra_forbidden" if is_argument:
            return _error_body(f"Unrecognized request argument supplied: {param}", None, None)
        case "extra_forbidden":
            return _error_body(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
        case "unsupported_parameter":
            return _error_body(
                f"Unsupported parameter: '{param}' is not supported by this server.", param, kind
            )
        case "needs_switch":
            return _error_body(
                f"The '{param}' parameter is only allowed when '{context['switch']}' is true.",
                param,
                "invalid_value",
            )
        case "less_than_equal" | "greater_than_equal":
            key, side, code, sign = _BOUNDS[kind]
            limit = context[key]
            number = "decimal" if isinstance(limit, float) else "integer"
            return _error_body(
                f"Invalid '{param}': {number} {side} value. "
                f"Expected a value {sign} {_number(limit)}, but got {_number(value)} instead.",
                param,
                f"{number}_{code}_value",
            )
        case "too_long":
            limit, length = context["max_length"], context["actual_length"]
            what = "object" if isinstance(value, dict) else "array"
            return _error_body(
                f"Invalid '{param}': {what} too long. Expected an {what} with maximum length "
                f"{limit}, but got an {what} with length {length} instead.",
                param,
                f"{what}_above_max_length",
            )
        case "too_short":
            what = "object" if isinstance(value, dict) else "array"
            return _error_body(
                f"Invalid '{param}': empty {what}. Expected an {what} with minimum length "
                f"{context['min_length']}, but got an empty {what} instead.",
                param,
                f"empty_{what}",
            )
        case "literal_error" | "union_tag_invalid":
            got = context.get("tag", value)
            supported = context.get("expected_tags", context.get("expected"))
            return _error_body(
                f"Invalid value: {got!r}. Supported values are: {supported}.",
                param,
                "invalid_value",
            )
        case _ if kind in _EXPECTED:
            where = f" for '{param}'" if param else ""
            return _error_body(
                f"Invalid type{where}: expected {_EXPECTED[kind]}, "
                f"but got {_GOT[type(value)]} instead.",
                param or None,
                "invalid_type",
            )
        case _:
            return _error_body(f"Invalid '{param}': {error['msg']}.", param, "invalid_value")


def _error_body(message: str, param: str | None, code: str | None) -> ErrorBody:
    return ErrorBody(message=message, type=RequestError.error_type, param=param, code=code)


def _not_json(detail: str) -> ErrorBody:
    return _error_body(f"We could not parse the JSON body of your request: {detail}.", None, None)


def _number(value: float) -> str:
    return json.dumps(int(value) if value == int(value) else value)


def _path(location: tuple[int | str, ...], body: Any) -> str:
    """Write a location as `messages[0].role`.

    Pydantic's location also names the member of a union that it tried. Only steps that exist in
    the body, or a last one that is missing there, are part of the path.
    """
    path = ""
    for position, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
            body = body[step]
        elif isinstance(body, dict) and (step in body or position == len(location) - 1):
            path += f".{step}" if path else step
            body = body.get(step)
    return path
