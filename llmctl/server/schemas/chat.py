"""Requests and responses of `/v1/chat/completions`: OpenAI's fields and our extensions."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, Discriminator, Field, Tag
from typing_extensions import TypedDict  # pydantic cannot read typing's before Python 3.12

from llmctl.server.schemas.base import (
    MAX_TOOLS,
    CompletionUsage,
    FunctionDefinition,
    IgnoredFields,
    JSONObjectFormat,
    SamplingFields,
    StreamOptions,
    StrictModel,
    TextFormat,
    ToolMode,
    Unsupported,
    accept_only,
    list_length,
    requires_true,
    sampling_range,
    string_or_array,
    string_or_object,
)
from llmctl.types import FinishReason


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
    arguments: str | None = None
    """As the model wrote it: not always a JSON object."""


class MessageToolCall(StrictModel):
    id: str
    type: Literal["function"] = "function"
    function: MessageFunctionCall
    index: int | None = None
    """Without effect: clients that join a stream send it back."""


class ToolMessage(StrictModel):
    role: Literal["tool"]
    content: Content
    name: str | None = None
    tool_call_id: str


class AssistantMessage(StrictModel):
    """Also a message of an earlier response, which clients send back with all its nulls."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Annotated[list[MessageToolCall], list_length()] | None = None
    reasoning_content: str | None = None
    annotations: Annotated[list[Any] | None, accept_only([])] = None


class JSONSchema(StrictModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    # The name `schema` is taken: pydantic's models have a method of that name.
    schema_: Annotated[dict[str, Any], Field(alias="schema", min_length=1)]
    strict: bool | None = None
    """`False` leaves objects open where `additionalProperties` is not given. A schema is always
    enforced completely, or refused."""


class JSONSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: JSONSchema


class FunctionTool(StrictModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(StrictModel):
    name: str


class NamedTool(StrictModel):
    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[ToolMode | Annotated[NamedTool, Tag("object")], string_or_object]

ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Discriminator("type")]


class ChatCompletionRequest(SamplingFields, IgnoredFields):
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

    # Extensions of OpenAI's fields.
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None

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


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobEntry(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprobEntry] | None
    refusal: None = None


class FunctionCall(TypedDict, total=False):
    name: str
    arguments: str
    """JSON as text."""


class ToolCallEntry(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ResponseMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallEntry]]


class ChatChoice(BaseModel):
    index: int
    message: ResponseMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix time in seconds."""
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    system_fingerprint: None = None


class ToolCallDelta(TypedDict):
    index: int
    id: NotRequired[str]
    """Sent once, like type and name, in the first delta of a call: clients join repeated ones."""
    type: NotRequired[Literal["function"]]
    function: FunctionCall


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    """Unix time in seconds, equal in all chunks of a response."""
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    """Left out unless the request has `include_usage`."""
    system_fingerprint: None = None
