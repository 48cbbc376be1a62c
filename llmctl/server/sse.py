"""How does a reply become OpenAI's event stream?"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmctl.errors import LlmctlError
from llmctl.server.convert import ReplyHead, choice_logprobs, usage
from llmctl.server.errors import INTERNAL_ERROR, error_body, log_failure
from llmctl.server.hangup import unless_gone
from llmctl.server.schemas import (
    ChatCompletionChunk,
    ChunkChoice,
    CompletionUsage,
    Delta,
    ErrorResponse,
)
from llmctl.types import GenerationChunk

DONE = b"data: [DONE]\n\n"

# Legal inside JSON, but many clients split the stream with `str.splitlines`.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class EventStream(Response):
    """Sends events as they come.

    The status waits for the first event: what goes wrong before it is raised, and so becomes an
    ordinary error reply. A client that leaves closes `events`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(self._send_all(send), receive)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            event = await anext(events)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await send({"type": "http.response.body", "body": event, "more_body": True})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def chat_events(
    chunks: AsyncGenerator[GenerationChunk, None],
    head: ReplyHead,
    *,
    include_usage: bool,
    log_id: str,
) -> AsyncGenerator[bytes, None]:
    """Write chunks as `chat.completion.chunk` events.

    An error before the first event is raised; a later one becomes the last event.

    Args:
        log_id: names the request in the log.
    """

    def event(*choices: ChunkChoice, counted: CompletionUsage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=head.id, created=head.created, model=head.model, choices=list(choices), usage=counted
        )
        return _event(chunk.model_dump_json(exclude=None if include_usage else {"usage"}))

    begun: set[int] = set()
    counted = None
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if chunk.index not in begun:
                    begun.add(chunk.index)
                    delta: Delta = {"role": "assistant", "content": ""}
                    yield event(ChunkChoice(index=chunk.index, delta=delta))
                if chunk.text or chunk.logprobs:
                    yield event(_text_choice(chunk))
                if chunk.finish_reason is not None:
                    finish = chunk.finish_reason
                    yield event(ChunkChoice(index=chunk.index, delta={}, finish_reason=finish))
                if chunk.usage is not None:
                    counted = usage(chunk.usage)
        except Exception as error:
            if not begun:
                raise
            log_failure(log_id, error)
            body = error_body(error) if isinstance(error, LlmctlError) else INTERNAL_ERROR
            yield _event(ErrorResponse(error=body).model_dump_json())
            return
    if include_usage:
        yield event(counted=counted)
    yield DONE


def _text_choice(chunk: GenerationChunk) -> ChunkChoice:
    return ChunkChoice(
        index=chunk.index,
        delta={"content": chunk.text},
        logprobs=choice_logprobs(chunk.logprobs) if chunk.logprobs else None,
    )


def _event(data: str) -> bytes:
    return f"data: {data.translate(_LINE_BREAKS)}\n\n".encode()
