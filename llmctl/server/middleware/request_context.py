"""Context of every request: its id, its record, and a response to unexpected exceptions."""

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmctl.errors import LlmctlError
from llmctl.server.errors import INTERNAL_ERROR, error_response, log_failure
from llmctl.server.request_log import RequestObserver, RequestRecord
from llmctl.types import new_request_id

REQUEST_ID_HEADER = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128


class RequestContextMiddleware:
    """Sets `state.request_id` and `state.record`, and passes the finished record to the observers.

    Plain ASGI, because Starlette's BaseHTTPMiddleware hides disconnects from the routes.
    """

    def __init__(self, app: ASGIApp, *, observers: Sequence[RequestObserver] = ()) -> None:
        self._app = app
        self._observers = tuple(observers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _client_request_id(scope) or new_request_id()
        client = scope.get("client")
        record = RequestRecord(
            request_id, scope["method"], scope["path"], client[0] if client else None
        )
        scope.setdefault("state", {}).update(request_id=request_id, record=record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # no client is left to answer
        except Exception as error:
            log_failure(request_id, error)
            record.error = INTERNAL_ERROR.type
            if record.status is None:
                response = error_response(LlmctlError.http_status, INTERNAL_ERROR)
                await response(scope, receive, send_with_id)
        finally:
            record.route = getattr(scope.get("route"), "path", "")
            record.finish()
            for observer in self._observers:
                observer.observe(record)


def _client_request_id(scope: Scope) -> str | None:
    """Return the id that the client sent, if it is safe to send back and to log."""
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    safe = sent.isascii() and sent.isprintable() and len(sent) <= MAX_REQUEST_ID_LENGTH
    return sent if safe and sent else None
