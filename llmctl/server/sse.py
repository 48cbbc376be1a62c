"""How does a reply become OpenAI's event stream?"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmctl.errors import LlmctlError
from llmctl.server.cancel_on_disconnect import cancel_on_disconnect
from llmctl.server.convert import ResponseMetadata, choice_logprobs, usage
from llmctl.server.errors import INTERNAL_ERROR, error_body, log_failure
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.chat_responses import (
    ChatCompletionChunk,
    ChunkChoice,
    CompletionUsage,
    Delta,
    ErrorResponse,
    ToolCallDelta,
)
from llmctl.types import GenerationChunk

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

# Legal inside JSON, but many clients split the stream with `str.splitlines`.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class EventStream(Response):
    """Sends events as they come, and comments while none come.

    The status waits for the first event or comment: what goes wrong before it is raised, and so
    becomes an ordinary error reply; later it becomes the last event. A client that leaves closes
    `events`.

    Args:
        ping_s: a stream that is silent so long sends a comment; 0 never does.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        record: RequestRecord,
        *,
        ping_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._events = events
        self._record = record
        self._ping_s = ping_s
        self._sent_at: float | None = None
        # Events and comments come from two tasks, and each is sent whole.
        self._sending = asyncio.Lock()
        self.status_code = 200
        self.background = None
        self.init_headers(
            {"cache-control": "no-cache", "x-accel-buffering": "no"} | dict(headers or {})
        )

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await cancel_on_disconnect(self._send_all(send), receive)

    async def _send_all(self, send: Send) -> None:
        pinging = asyncio.create_task(self._ping(send)) if self._ping_s else None
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await self._write(event, send)
        except Exception as error:
            if self._sent_at is None:
                raise
            await self._write(self._failure(error), send)
        finally:
            if pinging is not None:
                pinging.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes, send: Send) -> None:
        async with self._sending:
            if self._sent_at is None:
                start = {"status": self.status_code, "headers": self.raw_headers}
                await send({"type": "http.response.start", **start})
            self._sent_at = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        begun = time.monotonic()
        while True:
            silent = time.monotonic() - (self._sent_at or begun)
            await asyncio.sleep(max(self._ping_s - silent, 0.01))
            if time.monotonic() - (self._sent_at or begun) >= self._ping_s:
                await self._write(PING, send)

    def _failure(self, error: Exception) -> bytes:
        log_failure(self._record.request_id, error)
        body = error_body(error) if isinstance(error, LlmctlError) else INTERNAL_ERROR
        self._record.error = body.code or body.type
        return format_event(ErrorResponse(error=body).model_dump_json())


async def chat_events(
    chunks: AsyncGenerator[GenerationChunk, None],
    head: ResponseMetadata,
    *,
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """Write chunks as `chat.completion.chunk` events."""

    def event(*choices: ChunkChoice, counted: CompletionUsage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=head.id, created=head.created, model=head.model, choices=list(choices), usage=counted
        )
        return format_event(chunk.model_dump_json(exclude=None if include_usage else {"usage"}))

    begun: set[int] = set()
    called: dict[int, list[str]] = {}
    counted = None
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.index not in begun:
                begun.add(chunk.index)
                opening: Delta = {"role": "assistant", "content": ""}
                yield event(ChunkChoice(index=chunk.index, delta=opening))
            for delta in _deltas(chunk, called):
                yield event(ChunkChoice(index=chunk.index, delta=delta))
            if chunk.text or chunk.logprobs:
                yield event(_text_choice(chunk))
            if chunk.finish_reason is not None:
                finish = chunk.finish_reason
                yield event(ChunkChoice(index=chunk.index, delta={}, finish_reason=finish))
            if chunk.usage is not None:
                counted = usage(chunk.usage)
    if include_usage:
        yield event(counted=counted)
    yield DONE


def _deltas(chunk: GenerationChunk, called: dict[int, list[str]]) -> Iterator[Delta]:
    """Yield what is no answer: reasoning, and calls of tools, numbered from 0 in each choice.

    Args:
        called: the ids of the calls that each choice has begun.
    """
    if chunk.reasoning:
        yield {"reasoning_content": chunk.reasoning}
    ids = called.setdefault(chunk.index, [])
    for call in chunk.tool_calls:
        if call.id not in ids[-1:]:
            ids.append(call.id)
            head: ToolCallDelta = {
                "index": len(ids) - 1,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
            yield {"tool_calls": [head]}
        yield {"tool_calls": [{"index": len(ids) - 1, "function": {"arguments": call.arguments}}]}


def _text_choice(chunk: GenerationChunk) -> ChunkChoice:
    return ChunkChoice(
        index=chunk.index,
        delta={"content": chunk.text},
        logprobs=choice_logprobs(chunk.logprobs) if chunk.logprobs else None,
    )


def format_named_event(name: str, data: str) -> bytes:
    """Write one event with its type, as the Responses API has them; `data` is JSON."""
    return f"event: {name}\n".encode() + format_event(data)


def format_event(data: str) -> bytes:
    """Write one event; `data` is JSON."""
    return f"data: {data.translate(_LINE_BREAKS)}\n\n".encode()
