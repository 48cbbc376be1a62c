"""Conversion of `/v1/chat/completions`: request, complete response, streamed events."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from llmctl.errors import RequestError
from llmctl.server.convert.base import (
    ResponseMetadata,
    completion_usage,
    finite_logprob,
    includes_usage,
    sampling_params,
)
from llmctl.server.schemas.base import CompletionUsage
from llmctl.server.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FunctionTool,
    NamedTool,
    PromptMessage,
    ResponseMessage,
    TokenLogprobEntry,
    ToolCallDelta,
    ToolMessage,
    TopLogprob,
)
from llmctl.server.sse import DONE, format_event
from llmctl.types import (
    Choice,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    Message,
    SamplingParams,
    TokenLogprob,
    TokenProb,
    Tool,
    ToolCall,
)


def chat_generation_request(
    body: ChatCompletionRequest, adapter: str | None = None
) -> GenerationRequest:
    """Return the engine's request.

    Raises:
        RequestError: `tool_choice` without `tools`, or more than one of `response_format`, `regex`
            and `choice`.
    """
    tools = () if body.tool_choice == "none" else tuple(map(_tool, body.tools or ()))
    if body.tools is None and body.tool_choice not in (None, "none"):
        raise RequestError(
            "'tool_choice' is only allowed when 'tools' are given", param="tool_choice"
        )
    match body.tool_choice:
        case NamedTool(function=function):
            required: tuple[str, ...] = (function.name,)
        case "required":
            required = tuple(tool.name for tool in tools)
        case _:
            required = ()
    return GenerationRequest(
        messages=tuple(_message(message) for message in body.messages),
        tools=tools,
        required_tools=required,
        # OpenAI calls a named function exactly once.
        parallel_tool_calls=body.parallel_tool_calls is not False
        and not isinstance(body.tool_choice, NamedTool),
        continue_final_message=body.continue_final_message is True,
        template_kwargs=body.chat_template_kwargs or {},
        sampling=_sampling(body),
        adapter=adapter,
    )


def _tool(tool: FunctionTool) -> Tool:
    function = tool.function
    return Tool(
        function.name,
        function.description or "",
        function.parameters,
        strict=function.strict is True,
    )


def _message(message: PromptMessage | AssistantMessage | ToolMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        # No separator between the parts: it would be text that the client did not send.
        content = "".join(part.text for part in content)
    text = "" if content is None else content
    match message:
        case AssistantMessage():
            calls = tuple(
                ToolCall(call.function.name, call.function.arguments or "", call.id)
                for call in message.tool_calls or ()
            )
            return Message(
                "assistant",
                text,
                reasoning=message.reasoning_content,
                tool_calls=calls,
                name=message.name,
            )
        case ToolMessage():
            return Message("tool", text, tool_call_id=message.tool_call_id, name=message.name)
        case _:
            return Message(message.role, text, name=message.name)


def _sampling(body: ChatCompletionRequest) -> SamplingParams:
    max_new_tokens = body.max_completion_tokens
    if max_new_tokens is None:
        max_new_tokens = body.max_tokens
    logprobs = None
    if body.logprobs:
        logprobs = 0 if body.top_logprobs is None else body.top_logprobs
    return sampling_params(
        body,
        max_new_tokens=max_new_tokens,
        logprobs=logprobs,
        response_format=body.response_format,
    )


def chat_completion(
    metadata: ResponseMetadata, body: ChatCompletionRequest, result: GenerationResult
) -> ChatCompletion:
    """Return the complete response."""
    return ChatCompletion(
        id=metadata.id,
        created=metadata.created,
        model=metadata.model,
        choices=[
            ChatChoice(
                index=index,
                message=_response_message(choice),
                logprobs=_choice_logprobs(choice.logprobs) if body.logprobs else None,
                finish_reason=choice.finish_reason,
            )
            for index, choice in enumerate(result.choices)
        ],
        usage=completion_usage(result.usage),
    )


def _response_message(choice: Choice) -> ResponseMessage:
    message: ResponseMessage = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.tool_calls
        ]
    return message


async def chat_completion_events(
    metadata: ResponseMetadata,
    body: ChatCompletionRequest,
    chunks: AsyncGenerator[GenerationChunk, None],
) -> AsyncGenerator[bytes, None]:
    """Yield the response as `chat.completion.chunk` events."""
    include_usage = includes_usage(body.stream_options)

    def event(*choices: ChunkChoice, usage: CompletionUsage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=metadata.id,
            created=metadata.created,
            model=metadata.model,
            choices=list(choices),
            usage=usage,
        )
        return format_event(chunk.model_dump_json(exclude=None if include_usage else {"usage"}))

    started: set[int] = set()
    call_ids: dict[int, list[str]] = {}
    usage = None
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.index not in started:
                started.add(chunk.index)
                first: Delta = {"role": "assistant", "content": ""}
                yield event(ChunkChoice(index=chunk.index, delta=first))
            for delta in _reasoning_and_call_deltas(chunk, call_ids):
                yield event(ChunkChoice(index=chunk.index, delta=delta))
            if chunk.text or chunk.logprobs:
                yield event(_text_choice(chunk))
            if chunk.finish_reason is not None:
                finish = chunk.finish_reason
                yield event(ChunkChoice(index=chunk.index, delta={}, finish_reason=finish))
            if chunk.usage is not None:
                usage = completion_usage(chunk.usage)
    if include_usage:
        yield event(usage=usage)
    yield DONE


def _reasoning_and_call_deltas(
    chunk: GenerationChunk, call_ids: dict[int, list[str]]
) -> Iterator[Delta]:
    """Yield the deltas of reasoning and of tool calls, which are numbered from 0 in each choice.

    Args:
        call_ids: ids of the calls that each choice has begun; extended here.
    """
    if chunk.reasoning:
        yield {"reasoning_content": chunk.reasoning}
    ids = call_ids.setdefault(chunk.index, [])
    for call in chunk.tool_calls:
        if call.id not in ids[-1:]:
            ids.append(call.id)
            first: ToolCallDelta = {
                "index": len(ids) - 1,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
            yield {"tool_calls": [first]}
        yield {"tool_calls": [{"index": len(ids) - 1, "function": {"arguments": call.arguments}}]}


def _text_choice(chunk: GenerationChunk) -> ChunkChoice:
    return ChunkChoice(
        index=chunk.index,
        delta={"content": chunk.text},
        logprobs=_choice_logprobs(chunk.logprobs) if chunk.logprobs else None,
    )


def _choice_logprobs(tokens: tuple[TokenLogprob, ...]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            TokenLogprobEntry(
                **_top_logprob(token.chosen).model_dump(),
                top_logprobs=[_top_logprob(likely) for likely in token.top],
            )
            for token in tokens
        ]
    )


def _top_logprob(token: TokenProb) -> TopLogprob:
    return TopLogprob(
        token=token.token,
        logprob=finite_logprob(token.logprob),
        bytes=list(token.token_bytes),
    )
