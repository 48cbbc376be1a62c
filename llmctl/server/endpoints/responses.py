"""How is OpenAI's Responses API answered by the same engine? Nothing is kept between requests."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmctl.errors import RequestError
from llmctl.server.convert import ResponseMetadata
from llmctl.server.schemas.chat import JSONObjectFormat
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
    ResponseUsage,
)
from llmctl.server.sse import format_named_event
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


def response_request(body: ResponseRequest, adapter: str | None) -> GenerationRequest:
    """Make a request of the wire's.

    Raises:
        RequestError: fields that do not go together.
    """
    tools = tuple(
        Tool(t.name, t.description or "", t.parameters, strict=t.strict is True)
        for t in body.tools or ()
    )
    if not tools and body.tool_choice not in (None, "none", "auto"):
        raise RequestError(
            "'tool_choice' is only allowed when 'tools' are given", param="tool_choice"
        )
    forced: tuple[str, ...] = ()
    if isinstance(body.tool_choice, ResponseNamedTool):
        forced = (body.tool_choice.name,)
    elif body.tool_choice == "required":
        forced = tuple(tool.name for tool in tools)
    return GenerationRequest(
        messages=_messages(body),
        tools=() if body.tool_choice == "none" else tools,
        required_tools=forced,
        parallel_tool_calls=body.parallel_tool_calls is not False and len(forced) != 1,
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
        case ResponseSchemaFormat(schema_=schema):
            source = json.dumps(schema, ensure_ascii=False)
            return Grammar("json_schema", source, param="text.format")
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
                    # Calls and the words before them are one turn.
                    calls = (*last.tool_calls, call)
                    messages[-1] = Message("assistant", last.content, tool_calls=calls)
                else:
                    messages.append(Message("assistant", "", tool_calls=(call,)))
            case FunctionCallOutputItem():
                messages.append(Message("tool", _text(item.output), tool_call_id=item.call_id))
            case ReasoningItem():
                pass  # templates leave the reasoning of past turns out
    return tuple(messages)


def _text(content: str | list[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


@dataclass(frozen=True, slots=True)
class _Said:
    """What has been written of one item: a message, or a call of a tool."""

    text: str
    call: ToolCall | None = None

    def goes_on(self, piece: "_Said") -> bool:
        """Whether the next piece belongs to the same item."""
        mine, other = self.call, piece.call
        return (mine and mine.id) == (other and other.id)

    def and_then(self, piece: "_Said") -> "_Said":
        return replace(self, text=self.text + piece.text)


def _said(chunk: GenerationChunk) -> list[_Said]:
    text = [_Said(chunk.text)] if chunk.text else []
    return [*text, *(_Said(call.arguments, call) for call in chunk.tool_calls)]


class ResponseWriter:
    """Writes the response object as it stands, and the events that lead to it."""

    def __init__(self, body: ResponseRequest, head: ResponseMetadata) -> None:
        self._body = body
        self._head = head
        self._events = 0
        self._output: list[dict[str, Any]] = []

    def whole(self, result: GenerationResult) -> ResponseObject:
        """Return the finished response."""
        (choice,) = result.choices
        self._output = _items(choice, self._head.id)
        return self._object(_status(choice.finish_reason), result.usage)

    async def events(
        self, chunks: AsyncGenerator[GenerationChunk, None]
    ) -> AsyncGenerator[bytes, None]:
        """Write the events of a reply; an error before its first chunk is raised."""
        usage, reason = None, "stop"
        said: _Said | None = None
        begun = False
        async with aclosing(chunks):
            async for chunk in chunks:
                if not begun:
                    begun = True
                    for name in ("response.created", "response.in_progress"):
                        yield self._event(name, response=self._dump("in_progress", None))
                for piece in _said(chunk):
                    if said is None or not said.goes_on(piece):
                        for event in (*self._close(said), *self._open(piece)):
                            yield event
                        said = piece
                    else:
                        said = said.and_then(piece)
                    yield self._delta(piece)
                usage, reason = chunk.usage or usage, chunk.finish_reason or reason
        if said is None:
            said = _Said("")
            for event in self._open(said):
                yield event
        status = _status(reason)
        for event in self._close(said, status):
            yield event
        yield self._event(f"response.{status}", response=self._dump(status, usage))

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._events} | fields
        self._events += 1
        return format_named_event(kind, json.dumps(data, ensure_ascii=False))

    def _item(self, said: "_Said", status: str) -> dict[str, Any]:
        if said.call is not None:
            return _call(replace(said.call, arguments=said.text)) | {"status": status}
        return _message(self._head.id, len(self._output), said.text, status)

    def _where(self, said: "_Said") -> dict[str, Any]:
        """Name the item that is written now, and the place in it."""
        where = {"item_id": self._item(said, "")["id"], "output_index": len(self._output)}
        return where if said.call is not None else where | {"content_index": 0}

    def _open(self, said: "_Said") -> list[bytes]:
        empty = self._item(replace(said, text=""), "in_progress")
        at = len(self._output)
        if said.call is not None:
            return [self._event("response.output_item.added", output_index=at, item=empty)]
        (part,) = empty["content"]
        opened = empty | {"content": []}
        return [
            self._event("response.output_item.added", output_index=at, item=opened),
            self._event("response.content_part.added", **self._where(said), part=part),
        ]

    def _delta(self, said: "_Said") -> bytes:
        where = self._where(said)
        if said.call is not None:
            kind = "response.function_call_arguments.delta"
            return self._event(kind, **where, delta=said.text)
        return self._event("response.output_text.delta", **where, delta=said.text, logprobs=[])

    def _close(self, said: "_Said | None", status: "_Status" = "completed") -> list[bytes]:
        if said is None:
            return []
        done, where = self._item(said, status), self._where(said)
        if said.call is not None:
            kind = "response.function_call_arguments.done"
            events = [self._event(kind, **where, name=said.call.name, arguments=said.text)]
        else:
            events = [
                self._event("response.output_text.done", **where, text=said.text, logprobs=[]),
                self._event("response.content_part.done", **where, part=done["content"][0]),
            ]
        at = len(self._output)
        self._output.append(done)
        return [*events, self._event("response.output_item.done", output_index=at, item=done)]

    def _dump(self, status: "_Status", usage: Usage | None) -> dict[str, Any]:
        return self._object(status, usage).model_dump(mode="json")

    def _object(self, status: "_Status", usage: Usage | None) -> ResponseObject:
        body = self._body
        text = {} if body.text is None else body.text.model_dump(by_alias=True, exclude_none=True)
        choice = body.tool_choice
        return ResponseObject(
            id=self._head.id,
            created_at=self._head.created,
            status=status,
            incomplete_details=(
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self._head.model,
            output=self._output,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=body.temperature,
            text={"format": {"type": "text"}} | text,
            tool_choice=(
                choice.model_dump()
                if isinstance(choice, ResponseNamedTool)
                else "auto"
                if choice is None
                else choice
            ),
            tools=[_tool(tool) for tool in body.tools or ()],
            top_p=body.top_p,
            usage=None if usage is None else _usage(usage),
            metadata=body.metadata or {},
        )


_Status = Literal["in_progress", "completed", "incomplete"]


def _status(reason: str) -> _Status:
    return "incomplete" if reason == "length" else "completed"


def _tool(tool: Any) -> dict[str, Any]:
    described: dict[str, Any] = tool.model_dump()
    return described | {"strict": tool.strict is True, "parameters": tool.parameters or {}}


def _items(choice: Choice, response_id: str) -> list[dict[str, Any]]:
    items = [_call(call) for call in choice.tool_calls]
    if choice.text or not items:
        items.insert(0, _message(response_id, 0, choice.text, "completed"))
    # Only the last can lack its end.
    items[-1]["status"] = _status(choice.finish_reason)
    return items


def _message(response_id: str, number: int, text: str, status: str) -> dict[str, Any]:
    return {
        "id": f"msg_{response_id.removeprefix('resp_')}_{number}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def _call(call: ToolCall) -> dict[str, Any]:
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
