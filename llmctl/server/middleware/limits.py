"""How much of a client does the server put up with? Large, slow and endless requests."""

import asyncio
from typing import Any

from h11 import IDLE
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmctl.server.errors import http_error_response
from llmctl.server.request_record import RequestRecord

HEADERS_TIMEOUT_S = 20.0
BODY_TIMEOUT_S = 60.0


class BodyLimitMiddleware:
    """Refuses bodies that are too large, or do not come to an end in time."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            record: RequestRecord = scope["state"]["record"]
            await http_error_response(self._too_large(), record)(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
        size, whole = 0, False

        async def bounded() -> Message:
            # What is raised here is raised where the body is read, and answered as its status.
            nonlocal size, whole
            if whole:
                return await receive()  # it is about the client's leaving now
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408,
                    f"The body did not arrive within {BODY_TIMEOUT_S:g} seconds.",
                    headers={"connection": "close"},
                ) from error
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size > self._max_bytes:
                    raise self._too_large()
            return message

        await self._app(scope, bounded, send)

    def _too_large(self) -> HTTPException:
        limit = self._max_bytes
        return HTTPException(413, f"The body is larger than this server's limit of {limit} bytes.")


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP that waits only so long for the headers of a request."""

    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """Run the clock while headers are coming, from their first byte or the connection's."""
        if self.conn.their_state is not IDLE:
            self._stop_watching()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(HEADERS_TIMEOUT_S, self._give_up)

    def _stop_watching(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> Any:
        self.transport.close()
