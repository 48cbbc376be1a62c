"""What do requests look like on the wire? OpenAI's fields, and our extensions.

They are strict: nothing is coerced, nothing is ignored in silence. What OpenAI knows and this
server does not honour yet is declared too, so that it is refused by name.
"""

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
"""Of any list: checking more of them would hold up everybody else."""

MAX_CHECKED_FIELDS = 64
"""More than any object here has."""

MAX_LOGIT_BIASES = 2**16
"""Enough to forbid a whole script of a large vocabulary."""


def sampling_range(name: str) -> Any:
    """Bound a sampling parameter."""
    low, high = SAMPLING_RANGES[name]
    return Field(ge=low, le=high)


def accept_only(*honoured: object) -> BeforeValidator:
    """Refuse every value but null and the ones that ask for what happens anyway."""

    def check(value: object) -> object:
        if value is None or value in honoured:
            return value
        raise PydanticCustomError("unsupported_parameter", "not supported")

    return BeforeValidator(check)


def requires_true(switch: str) -> AfterValidator:
    """Refuse a value while the boolean field `switch`, declared before it, is not true."""

    def check(value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get(switch) is not True:
            raise PydanticCustomError("needs_switch", "needs {switch}", {"switch": switch})
        return value

    return AfterValidator(check)


def list_length(least: int = 0, most: int | None = MAX_ITEMS) -> Any:
    """Bound a list, which is read to the first wrong item only: one is reported."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def max_keys(most: int) -> BeforeValidator:
    """Bound an object before any of it is read."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticKnownError(
                "too_long",
                {"field_type": "Dictionary", "max_length": most, "actual_length": len(value)},
            )
        return value

    return BeforeValidator(check)


def _shape(value: object) -> str | None:
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else None


# A plain union would report every member's complaint; this one reports the right member's.
string_or_array = Discriminator(
    _shape, custom_error_type="string_or_array", custom_error_message="neither string nor array"
)

Unsupported = Annotated[None, accept_only()]
Metadata = Annotated[dict[str, str], max_keys(MAX_ITEMS)]


class StrictModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_stranger(cls, value: object) -> object:
        """Keep one of many fields that nobody knows: one is reported, and each costs time."""
        if not isinstance(value, dict) or len(value) <= MAX_CHECKED_FIELDS:
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        strange = next((name for name in value if name not in known), None)
        return {name: v for name, v in value.items() if name in known or name == strange}


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextPart], list_length(1), Tag("array")],
    string_or_array,
]


class PromptMessage(StrictModel):
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class MessageFunctionCall(StrictModel):
    name: str
    arguments: str


class MessageToolCall(StrictModel):
    id: str
    type: Literal["function"] = "function"
    function: MessageFunctionCall
    index: int | None = None
    """Without effect: clients that gather a stream send it back."""


class ToolMessage(StrictModel):
    role: Literal["tool"]
    content: Content
    name: str | None = None
    tool_call_id: str


class AssistantMessage(StrictModel):
    """Also what clients send back from an earlier reply, with all its nulls and empty lists."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Annotated[list[MessageToolCall], list_length()] | None = None
    reasoning_content: str | None = None
    annotations: Annotated[list[Any] | None, accept_only([])] = None


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, accept_only(False)] = None


class TextFormat(StrictModel):
    type: Literal["text"]


class JSONObjectFormat(StrictModel):
    type: Literal["json_object"]


class JSONSchema(StrictModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    # `schema` is taken: pydantic's own models have a method of that name.
    schema_: Annotated[dict[str, Any], Field(alias="schema", min_length=1)]
    strict: bool | None = None
    """Without effect: a schema is always enforced to the letter, or refused."""


class JSONSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: JSONSchema


class FunctionDefinition(StrictModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(StrictModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(StrictModel):
    name: str


class NamedTool(StrictModel):
    type: Literal["function"]
    function: FunctionName


def _choice_shape(value: object) -> str | None:
    return "string" if isinstance(value, str) else "object" if isinstance(value, dict) else None


string_or_object = Discriminator(
    _choice_shape,
    custom_error_type="string_or_object",
    custom_error_message="neither string nor object",
)
ToolMode = Annotated[Literal["none", "auto", "required"], Tag("string")]
ToolChoice = Annotated[ToolMode | Annotated[NamedTool, Tag("object")], string_or_object]

ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Discriminator("type")]


class SamplingFields(StrictModel):
    """How tokens are chosen, alike for chats and for raw prompts."""

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

    # Extensions: what OpenAI's SDK sends from `extra_body`.
    top_k: Annotated[int, sampling_range("top_k")] | None = None
    min_p: Annotated[float, sampling_range("min_p")] | None = None
    repetition_penalty: Annotated[float, sampling_range("repetition_penalty")] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], list_length()] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, sampling_range("min_new_tokens")] | None = None
    regex: str | None = None
    choice: Annotated[list[str], list_length(1)] | None = None


class ChatCompletionRequest(SamplingFields):
    model: str
    messages: Annotated[
        list[Annotated[PromptMessage | AssistantMessage | ToolMessage, Discriminator("role")]],
        list_length(1),
    ]
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, requires_true("stream")] = None

    max_tokens: Annotated[int, sampling_range("max_new_tokens")] | None = None
    max_completion_tokens: Annotated[int, sampling_range("max_new_tokens")] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[
        Annotated[int, sampling_range("logprobs")] | None, requires_true("logprobs")
    ] = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[FunctionTool], list_length(1, MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    # Extensions
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None

    # Accepted without effect: they are about OpenAI's own business, not about the reply.
    user: str | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None

    modalities: Annotated[list[str] | None, accept_only(["text"])] = None
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    prompt_cache_options: Unsupported = None
    prompt_cache_retention: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
