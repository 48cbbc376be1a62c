"""Server-sent events: the streaming response and the format of its events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmctl.errors import LlmctlError
from llmctl.server.async_bridge import cancel_on_disconnect
from llmctl.server.errors import INTERNAL_ERROR, error_body, log_failure
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.base import ErrorResponse

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

# Legal in JSON, but many clients split the stream with `str.splitlines`.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class EventStream(Response):
    """Response that sends events as they arrive, and comments while none arrive.

    The status is sent with the first event or comment. An error before that is raised and becomes
    an ordinary error response; an error after it becomes the last event. When the client
    disconnects, `events` is closed.

    Args:
        ping_s: seconds without an event after which a comment is sent; 0 never sends one.
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
        self._last_sent: float | None = None
        # Events and comments come from two tasks, and must not interleave.
        self._write_lock = asyncio.Lock()
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
            if self._last_sent is None:
                raise
            await self._write(self._error_event(error), send)
        finally:
            if pinging is not None:
                pinging.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes, send: Send) -> None:
        async with self._write_lock:
            if self._last_sent is None:
                start = {"status": self.status_code, "headers": self.raw_headers}
                await send({"type": "http.response.start", **start})
            self._last_sent = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        start = time.monotonic()
        while True:
            silent = time.monotonic() - (self._last_sent or start)
            await asyncio.sleep(max(self._ping_s - silent, 0.01))
            if time.monotonic() - (self._last_sent or start) >= self._ping_s:
                await self._write(PING, send)

    def _error_event(self, error: Exception) -> bytes:
        log_failure(self._record.request_id, error)
        body = error_body(error) if isinstance(error, LlmctlError) else INTERNAL_ERROR
        self._record.error = body.code or body.type
        return format_event(ErrorResponse(error=body).model_dump_json())


STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {EventStream.media_type: {"schema": {"type": "string"}}}}
}
"""OpenAPI description of a route that can also answer with an `EventStream`."""


def format_event(data: str, name: str | None = None) -> bytes:
    """Return one event.

    Args:
        data: JSON.
        name: the event's type, which only the Responses API sends.
    """
    event = f"data: {data.translate(_LINE_BREAKS)}\n\n"
    return (event if name is None else f"event: {name}\n{event}").encode()
