"""Limits on requests: size of the body, time for the headers and for the body."""

import asyncio
from typing import Any

from h11 import IDLE
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmctl.server.errors import http_error_response
from llmctl.server.request_log import RequestRecord

HEADERS_TIMEOUT_S = 20.0
BODY_TIMEOUT_S = 60.0


class BodyLimitMiddleware:
    """Refuses bodies that are too large (413) or do not arrive completely in time (408)."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            record: RequestRecord = scope["state"]["record"]
            await http_error_response(self._too_large(), record)(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        size, complete = 0, False

        async def bounded() -> Message:
            # An exception raised here reaches the route's read of the body and its error handler.
            nonlocal size, complete
            if complete:
                return await receive()  # waits for the disconnect, which has no deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408,
                    f"The body did not arrive within {self._timeout_s:g} seconds.",
                    headers={"connection": "close"},
                ) from error
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if size > self._max_bytes:
                    raise self._too_large()
            return message

        await self._app(scope, bounded, send)

    def _too_large(self) -> HTTPException:
        limit = self._max_bytes
        return HTTPException(413, f"The body is larger than this server's limit of {limit} bytes.")


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP protocol that closes a connection whose request headers do not arrive in time."""

    headers_timeout_s: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _update_timer(self) -> None:
        """Run the timer while headers are incomplete, from the connection or their first byte."""
        if self.conn.their_state is not IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.headers_timeout_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> Any:
        self.transport.close()


def protocol_with_timeout(headers_timeout_s: float) -> type[HeaderTimeoutProtocol]:
    """Return the protocol class; uvicorn constructs it itself, and passes no timeout."""
    return type("Protocol", (HeaderTimeoutProtocol,), {"headers_timeout_s": headers_timeout_s})
