"""What do requests and replies of `/v1/responses` look like? The stateless part of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from llmctl.server.schemas.chat import (
    MOST_TOOLS,
    FunctionDefinition,
    JSONObjectFormat,
    Metadata,
    TextFormat,
    ToolMode,
    Unsupported,
    WireRequest,
    by_choice,
    by_shape,
    items,
    only,
    within,
)

NEVER_THERE = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
"""What may be asked to be included, as it is part of items that no response of ours has."""


class InputText(WireRequest):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any] | None, only([])] = None
    logprobs: Annotated[list[Any] | None, only([])] = None


class InputMessage(WireRequest):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[str, Tag("string")] | Annotated[list[InputText], items(), Tag("array")], by_shape
    ]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class PastCall(WireRequest):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class CallOutput(WireRequest):
    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[
        Annotated[str, Tag("string")] | Annotated[list[InputText], items(1), Tag("array")], by_shape
    ]
    id: str | None = None
    status: str | None = None


class PastReasoning(WireRequest):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: str | None = None


def _item_kind(value: object) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[PastCall, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[PastReasoning, Tag("reasoning")],
    Discriminator(_item_kind),
]


class ResponseTool(FunctionDefinition):
    type: Literal["function"]


class ResponseNamedTool(WireRequest):
    type: Literal["function"]
    name: str


class ResponseSchemaFormat(WireRequest):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema", min_length=1)]
    strict: bool | None = None


class ResponseText(WireRequest):
    format: (
        Annotated[TextFormat | JSONObjectFormat | ResponseSchemaFormat, Discriminator("type")]
        | None
    ) = None
    verbosity: Unsupported = None


class ResponseRequest(WireRequest):
    model: str
    input: Annotated[
        Annotated[str, Tag("string")] | Annotated[list[Item], items(1), Tag("array")],
        by_shape,
    ]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, within("max_new_tokens")] | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], items(most=MOST_TOOLS)] | None = None
    tool_choice: (
        Annotated[ToolMode | Annotated[ResponseNamedTool, Tag("object")], by_choice] | None
    ) = None
    parallel_tool_calls: bool | None = None

    # Extensions
    top_k: Annotated[int, within("top_k")] | None = None
    min_p: Annotated[float, within("min_p")] | None = None
    repetition_penalty: Annotated[float, within("repetition_penalty")] | None = None
    seed: Annotated[int, within("seed")] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Accepted without effect: nothing is kept here, whatever `store` says.
    store: bool | None = None
    user: str | None = None
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    include: Annotated[list[Annotated[str, only(*NEVER_THERE)]], items()] | None = None

    background: Annotated[bool | None, only(False)] = None
    conversation: Unsupported = None
    max_tool_calls: Unsupported = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    reasoning: Unsupported = None
    stream_options: Unsupported = None
    top_logprobs: Annotated[int | None, only(0)] = None
    truncation: Annotated[str | None, only("disabled")] = None


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
