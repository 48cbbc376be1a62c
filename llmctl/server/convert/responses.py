"""Conversion of `/v1/responses`: request, response object, streamed events."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmctl.errors import RequestError
from llmctl.server.convert.base import ResponseMetadata
from llmctl.server.schemas.base import JSONObjectFormat
from llmctl.server.schemas.responses import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputDetails,
    InputMessage,
    InputText,
    OutputDetails,
    ReasoningItem,
    ResponseNamedTool,
    ResponseObject,
    ResponseRequest,
    ResponseSchemaFormat,
    ResponseTool,
    ResponseUsage,
)
from llmctl.server.sse import format_event
from llmctl.types import (
    Choice,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    Grammar,
    Message,
    SamplingParams,
    Tool,
    ToolCall,
    Usage,
)

_Status = Literal["in_progress", "completed", "incomplete"]


def response_generation_request(body: ResponseRequest, adapter: str | None) -> GenerationRequest:
    """Return the engine's request.

    Raises:
        RequestError: `tool_choice` without `tools`.
    """
    tools = tuple(
        Tool(t.name, t.description or "", t.parameters, strict=t.strict is True)
        for t in body.tools or ()
    )
    if not tools and body.tool_choice not in (None, "none", "auto"):
        raise RequestError(
            "'tool_choice' is only allowed when 'tools' are given", param="tool_choice"
        )
    required: tuple[str, ...] = ()
    if isinstance(body.tool_choice, ResponseNamedTool):
        required = (body.tool_choice.name,)
    elif body.tool_choice == "required":
        required = tuple(tool.name for tool in tools)
    return GenerationRequest(
        messages=_messages(body),
        tools=() if body.tool_choice == "none" else tools,
        required_tools=required,
        parallel_tool_calls=body.parallel_tool_calls is not False and len(required) != 1,
        template_kwargs=body.chat_template_kwargs or {},
        sampling=SamplingParams(
            max_new_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            seed=body.seed,
            grammar=_grammar(body),
        ),
        adapter=adapter,
    )


def _grammar(body: ResponseRequest) -> Grammar | None:
    match None if body.text is None else body.text.format:
        case JSONObjectFormat():
            return Grammar("json_object")
        case ResponseSchemaFormat(schema_=schema, strict=strict):
            source = json.dumps(schema, ensure_ascii=False)
            return Grammar("json_schema", source, param="text.format", open_objects=strict is False)
        case _:
            return None


def _messages(body: ResponseRequest) -> tuple[Message, ...]:
    messages = [] if body.instructions is None else [Message("system", body.instructions)]
    if isinstance(body.input, str):
        return (*messages, Message("user", body.input))
    for item in body.input:
        match item:
            case InputMessage():
                messages.append(Message(item.role, _text(item.content)))
            case FunctionCallItem():
                call = ToolCall(item.name, item.arguments, item.call_id)
                last = messages[-1] if messages else None
                if last is not None and last.role == "assistant":
                    # A text and the calls that follow it are one turn.
                    calls = (*last.tool_calls, call)
                    messages[-1] = Message("assistant", last.content, tool_calls=calls)
                else:
                    messages.append(Message("assistant", "", tool_calls=(call,)))
            case FunctionCallOutputItem():
                messages.append(Message("tool", _text(item.output), tool_call_id=item.call_id))
            case ReasoningItem():
                pass  # chat templates omit the reasoning of earlier turns
    return tuple(messages)


def _text(content: str | list[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def response_object(
    metadata: ResponseMetadata, body: ResponseRequest, result: GenerationResult
) -> ResponseObject:
    """Return the complete response."""
    (choice,) = result.choices
    output = _output_items(choice, metadata.id)
    return _response(metadata, body, _status(choice.finish_reason), output, result.usage)


async def response_events(
    metadata: ResponseMetadata,
    body: ResponseRequest,
    chunks: AsyncGenerator[GenerationChunk, None],
) -> AsyncGenerator[bytes, None]:
    """Yield the response as the events of the Responses API.

    An error before the first chunk is raised before any event.
    """
    writer = _EventWriter(metadata, body)
    usage, finish_reason = None, "stop"
    started = False
    async with aclosing(chunks):
        async for chunk in chunks:
            if not started:
                started = True
                yield writer.response("response.created", "in_progress", None)
                yield writer.response("response.in_progress", "in_progress", None)
            for event in writer.chunk(chunk):
                yield event
            usage, finish_reason = chunk.usage or usage, chunk.finish_reason or finish_reason
    status = _status(finish_reason)
    for event in writer.finish(status):
        yield event
    yield writer.response(f"response.{status}", status, usage)


@dataclass(frozen=True, slots=True)
class _OutputItem:
    """An output item as far as it is generated: the text of a message, or a tool call."""

    text: str
    """Text of the message, or arguments of the call."""
    call: ToolCall | None = None

    @property
    def call_id(self) -> str | None:
        return None if self.call is None else self.call.id


class _EventWriter:
    """Numbers the events, and collects the finished output items."""

    def __init__(self, metadata: ResponseMetadata, body: ResponseRequest) -> None:
        self._metadata = metadata
        self._body = body
        self._sequence_number = 0
        self._output: list[dict[str, Any]] = []
        self._open_item: _OutputItem | None = None

    def response(self, kind: str, status: _Status, usage: Usage | None) -> bytes:
        """Return an event that holds the whole response object."""
        response = _response(self._metadata, self._body, status, self._output, usage)
        return self._event(kind, response=response.model_dump(mode="json"))

    def chunk(self, chunk: GenerationChunk) -> list[bytes]:
        """Return the events of a chunk's text and tool calls."""
        deltas = [_OutputItem(chunk.text)] if chunk.text else []
        deltas += [_OutputItem(call.arguments, call) for call in chunk.tool_calls]
        return [event for delta in deltas for event in self._add(delta)]

    def finish(self, status: _Status) -> list[bytes]:
        """Return the events that close the last item; without any output it is an empty message."""
        events = [] if self._open_item is not None else self._begin(_OutputItem(""))
        return [*events, *self._close(status)]

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence_number} | fields
        self._sequence_number += 1
        return format_event(json.dumps(data, ensure_ascii=False), kind)

    def _add(self, delta: _OutputItem) -> list[bytes]:
        item = self._open_item
        if item is None or item.call_id != delta.call_id:
            events = [*self._close("completed"), *self._begin(delta)]
        else:
            self._open_item = replace(item, text=item.text + delta.text)
            events = []
        position = self._position(delta)
        if delta.call is not None:
            kind = "response.function_call_arguments.delta"
            return [*events, self._event(kind, **position, delta=delta.text)]
        kind = "response.output_text.delta"
        return [*events, self._event(kind, **position, delta=delta.text, logprobs=[])]

    def _begin(self, item: _OutputItem) -> list[bytes]:
        self._open_item = item
        empty = self._item(replace(item, text=""), "in_progress")
        index = len(self._output)
        if item.call is not None:
            return [self._event("response.output_item.added", output_index=index, item=empty)]
        (part,) = empty["content"]
        message = empty | {"content": []}
        return [
            self._event("response.output_item.added", output_index=index, item=message),
            self._event("response.content_part.added", **self._position(item), part=part),
        ]

    def _close(self, status: _Status) -> list[bytes]:
        item, self._open_item = self._open_item, None
        if item is None:
            return []
        done, position = self._item(item, status), self._position(item)
        if item.call is not None:
            kind = "response.function_call_arguments.done"
            events = [self._event(kind, **position, name=item.call.name, arguments=item.text)]
        else:
            events = [
                self._event("response.output_text.done", **position, text=item.text, logprobs=[]),
                self._event("response.content_part.done", **position, part=done["content"][0]),
            ]
        index = len(self._output)
        self._output.append(done)
        return [*events, self._event("response.output_item.done", output_index=index, item=done)]

    def _item(self, item: _OutputItem, status: _Status) -> dict[str, Any]:
        if item.call is not None:
            return _call_item(replace(item.call, arguments=item.text)) | {"status": status}
        return _message_item(self._metadata.id, len(self._output), item.text, status)

    def _position(self, item: _OutputItem) -> dict[str, Any]:
        """Return the fields that locate the open item, and the content part within it."""
        item_id = self._item(item, "in_progress")["id"]
        position = {"item_id": item_id, "output_index": len(self._output)}
        return position if item.call is not None else position | {"content_index": 0}


def _response(
    metadata: ResponseMetadata,
    body: ResponseRequest,
    status: _Status,
    output: list[dict[str, Any]],
    usage: Usage | None,
) -> ResponseObject:
    text = {} if body.text is None else body.text.model_dump(by_alias=True, exclude_none=True)
    tool_choice: Any = "auto" if body.tool_choice is None else body.tool_choice
    if isinstance(tool_choice, ResponseNamedTool):
        tool_choice = tool_choice.model_dump()
    return ResponseObject(
        id=metadata.id,
        created_at=metadata.created,
        status=status,
        incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=metadata.model,
        output=output,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=body.temperature,
        text={"format": {"type": "text"}} | text,
        tool_choice=tool_choice,
        tools=[_tool(tool) for tool in body.tools or ()],
        top_p=body.top_p,
        usage=None if usage is None else _usage(usage),
        metadata=body.metadata or {},
    )


def _status(finish_reason: str) -> _Status:
    return "incomplete" if finish_reason == "length" else "completed"


def _tool(tool: ResponseTool) -> dict[str, Any]:
    strict, parameters = tool.strict is True, tool.parameters or {}
    return tool.model_dump() | {"strict": strict, "parameters": parameters}


def _output_items(choice: Choice, response_id: str) -> list[dict[str, Any]]:
    items = [_call_item(call) for call in choice.tool_calls]
    if choice.text or not items:
        items.insert(0, _message_item(response_id, 0, choice.text, "completed"))
    # Only the last item can be incomplete.
    items[-1]["status"] = _status(choice.finish_reason)
    return items


def _message_item(response_id: str, index: int, text: str, status: _Status) -> dict[str, Any]:
    return {
        "id": f"msg_{response_id.removeprefix('resp_')}_{index}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def _call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id.removeprefix('call_')}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(),
        total_tokens=usage.total_tokens,
    )
