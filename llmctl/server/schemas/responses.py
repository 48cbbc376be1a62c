"""Requests and responses of `/v1/responses`: the stateless part of OpenAI's Responses API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from llmctl.server.schemas.base import (
    MAX_TOOLS,
    FunctionDefinition,
    IgnoredFields,
    JSONObjectFormat,
    StrictModel,
    TextFormat,
    ToolMode,
    Unsupported,
    accept_only,
    list_length,
    sampling_range,
    string_or_array,
    string_or_object,
)

IGNORED_INCLUDES = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
"""Accepted values of `include`: they add to output items that this server never produces."""


class InputText(StrictModel):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any] | None, accept_only([])] = None
    logprobs: Annotated[list[Any] | None, accept_only([])] = None


class InputMessage(StrictModel):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[str, Tag("string")] | Annotated[list[InputText], list_length(), Tag("array")],
        string_or_array,
    ]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCallItem(StrictModel):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionCallOutputItem(StrictModel):
    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("string")] | Annotated[list[InputText], list_length(1), Tag("array")],
        string_or_array,
    ]
    id: str | None = None
    status: str | None = None


class ReasoningItem(StrictModel):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: str | None = None


def _item_type(value: object) -> str | None:
    item_type = value.get("type", "message") if isinstance(value, dict) else None
    return item_type if isinstance(item_type, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_item_type),
]


class ResponseTool(FunctionDefinition):
    type: Literal["function"]


class ResponseNamedTool(StrictModel):
    type: Literal["function"]
    name: str


class ResponseSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema", min_length=1)]
    strict: bool | None = None


class ResponseText(StrictModel):
    format: (
        Annotated[TextFormat | JSONObjectFormat | ResponseSchemaFormat, Discriminator("type")]
        | None
    ) = None
    verbosity: Unsupported = None


class ResponseRequest(IgnoredFields):
    model: str
    input: Annotated[
        Annotated[str, Tag("string")] | Annotated[list[InputItem], list_length(1), Tag("array")],
        string_or_array,
    ]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, sampling_range("max_new_tokens")] | None = None
    temperature: Annotated[float, sampling_range("temperature")] | None = None
    top_p: Annotated[float, sampling_range("top_p")] | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], list_length(most=MAX_TOOLS)] | None = None
    tool_choice: (
        Annotated[ToolMode | Annotated[ResponseNamedTool, Tag("object")], string_or_object] | None
    ) = None
    parallel_tool_calls: bool | None = None

    # Extensions of OpenAI's fields.
    top_k: Annotated[int, sampling_range("top_k")] | None = None
    min_p: Annotated[float, sampling_range("min_p")] | None = None
    repetition_penalty: Annotated[float, sampling_range("repetition_penalty")] | None = None
    seed: Annotated[int, sampling_range("seed")] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    include: (
        Annotated[list[Annotated[str, accept_only(*IGNORED_INCLUDES)]], list_length()] | None
    ) = None

    background: Annotated[bool | None, accept_only(False)] = None
    conversation: Unsupported = None
    max_tool_calls: Unsupported = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    reasoning: Unsupported = None
    stream_options: Unsupported = None
    top_logprobs: Annotated[int | None, accept_only(0)] = None
    truncation: Annotated[str | None, accept_only("disabled")] = None


class InputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseObject(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    """Unix time in seconds."""
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any] = {"effort": None, "summary": None}
    store: bool = False
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    metadata: dict[str, str]
