"""Parts that the request and response models share: strictness, limits, sampling, usage, errors.

Requests are strict: no value is coerced and no field is ignored silently. Fields of OpenAI's API
that this server does not support are declared too, so that the error can name them.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from llmctl.types import SAMPLING_RANGES

MAX_STOP_STRINGS = 4
MAX_TOOLS = 128
MAX_ITEMS = 4096
"""Of any list. Validating more would block the event loop for too long."""

MAX_CHECKED_FIELDS = 64
"""More fields than any model here has."""

MAX_LOGIT_BIASES = 2**16
"""Enough to forbid a whole script of a large vocabulary."""


def sampling_range(name: str) -> Any:
    """Return the bounds of a sampling parameter as a field."""
    low, high = SAMPLING_RANGES[name]
    return Field(ge=low, le=high)


def accept_only(*honoured: object) -> BeforeValidator:
    """Refuse every value but null and those that request what the server does in any case."""

    def check(value: object) -> object:
        if value is None or value in honoured:
            return value
        raise PydanticCustomError("unsupported_parameter", "not supported")

    return BeforeValidator(check)


def requires_true(switch: str) -> AfterValidator:
    """Refuse a value unless the boolean field `switch`, which is declared before it, is true."""

    def check(value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get(switch) is not True:
            raise PydanticCustomError("needs_switch", "needs {switch}", {"switch": switch})
        return value

    return AfterValidator(check)


def list_length(least: int = 0, most: int | None = MAX_ITEMS) -> Any:
    """Bound the length of a list. Validation stops at the first wrong item: one is reported."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def max_keys(most: int) -> BeforeValidator:
    """Bound the number of keys of an object before any of them is validated."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticKnownError(
                "too_long",
                {"field_type": "Dictionary", "max_length": most, "actual_length": len(value)},
            )
        return value

    return BeforeValidator(check)


def _string_or_array_tag(value: object) -> str | None:
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else None


# A plain union would report the errors of every member; a tagged one those of the right member.
string_or_array = Discriminator(
    _string_or_array_tag,
    custom_error_type="string_or_array",
    custom_error_message="neither string nor array",
)


def _string_or_object_tag(value: object) -> str | None:
    return "string" if isinstance(value, str) else "object" if isinstance(value, dict) else None


string_or_object = Discriminator(
    _string_or_object_tag,
    custom_error_type="string_or_object",
    custom_error_message="neither string nor object",
)

Unsupported = Annotated[None, accept_only()]
ToolMode = Annotated[Literal["none", "auto", "required"], Tag("string")]


class StrictModel(BaseModel):
    """Base of every request model."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_field(cls, value: object) -> object:
        """Drop all unknown fields but one: only one is reported, and each costs time."""
        if not isinstance(value, dict) or len(value) <= MAX_CHECKED_FIELDS:
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in value if name not in known), None)
        return {name: v for name, v in value.items() if name in known or name == unknown}


class IgnoredFields(StrictModel):
    """Fields without effect: they concern OpenAI's service, not the reply. Nothing is stored."""

    user: str | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], max_keys(MAX_ITEMS)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, accept_only(False)] = None


class TextFormat(StrictModel):
    type: Literal["text"]


class JSONObjectFormat(StrictModel):
    type: Literal["json_object"]


class FunctionDefinition(StrictModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class SamplingFields(StrictModel):
    """Sampling parameters of chat completions and of completions."""

    temperature: Annotated[float, sampling_range("temperature")] | None = None
    top_p: Annotated[float, sampling_range("top_p")] | None = None
    presence_penalty: Annotated[float, sampling_range("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, sampling_range("frequency_penalty")] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")],
                Annotated[float, Field(ge=-100.0, le=100.0)],
            ],
            max_keys(MAX_LOGIT_BIASES),
        ]
        | None
    ) = None
    stop: (
        Annotated[
            Annotated[str, Tag("string")]
            | Annotated[list[str], list_length(most=MAX_STOP_STRINGS), Tag("array")],
            string_or_array,
        ]
        | None
    ) = None
    seed: Annotated[int, sampling_range("seed")] | None = None
    n: Annotated[int, sampling_range("n")] | None = None

    # Extensions of OpenAI's fields, as its client sends them from `extra_body`.
    top_k: Annotated[int, sampling_range("top_k")] | None = None
    min_p: Annotated[float, sampling_range("min_p")] | None = None
    repetition_penalty: Annotated[float, sampling_range("repetition_penalty")] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], list_length()] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, sampling_range("min_new_tokens")] | None = None
    regex: str | None = None
    choice: Annotated[list[str], list_length(1)] | None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


_MAX_QUOTED, _MAX_RUN, _MAX_MESSAGE = 200, 400, 2000
_LONG_WORD = re.compile(rf"\S{{{_MAX_QUOTED + 1},}}")
_LONG_QUOTATION = re.compile(rf"(?<=['\"`])[^'\"`]{{{_MAX_RUN + 1},}}")


def shorten(text: str) -> str:
    """Cut words, quotations and texts that repeat much of a request, in characters.

    Our own words after a quotation are no longer than `_MAX_RUN`.
    """
    for long in (_LONG_WORD, _LONG_QUOTATION):
        text = long.sub(lambda part: f"{part[0][:_MAX_QUOTED]}\u2026", text)
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}\u2026"


def shorten_path(path: str | None) -> str | None:
    """Cut the path of a field whose keys are long."""
    if path is None or len(path) <= _MAX_QUOTED:
        return path
    return f"{path[:_MAX_QUOTED]}\u2026"


class ErrorBody(BaseModel):
    """OpenAI's error object; long quotations of the request are shortened."""

    message: Annotated[str, AfterValidator(shorten)]
    type: str
    param: Annotated[str | None, AfterValidator(shorten_path)]
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody
