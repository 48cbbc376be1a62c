"""What happens at the edge of every request? It gets an id, and an answer even if we crash."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmctl.errors import LlmctlError
from llmctl.server.errors import INTERNAL_ERROR, error_response, log_failure
from llmctl.types import new_request_id

REQUEST_ID_HEADER = "x-request-id"
MAX_CLIENT_ID_LENGTH = 128


class Boundary:
    """Plain ASGI, because Starlette's BaseHTTPMiddleware hides a client's leaving from routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _client_id(scope) or new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception as error:
            log_failure(request_id, error)
            if not started:
                response = error_response(LlmctlError.http_status, INTERNAL_ERROR)
                await response(scope, receive, send_with_id)


def _client_id(scope: Scope) -> str | None:
    """Return the id the client sent, if it is fit to be echoed and logged."""
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    fit = sent.isascii() and sent.isprintable() and len(sent) <= MAX_CLIENT_ID_LENGTH
    return sent if fit and sent else None
