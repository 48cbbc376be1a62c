"""API keys."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmctl.errors import AuthenticationError
from llmctl.server.errors import error_body, error_response

PUBLIC_PATHS = frozenset({"/", "/health"})
"""Paths that need no key: the health check, and the web page, which asks its user for the key."""


class ApiKeyMiddleware:
    """Refuses requests without one of the keys. Keys are compared in constant time."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            error = self._check(Headers(scope=scope).get("authorization", ""))
            if error is not None:
                scope["state"]["record"].error = error.code
                headers = {"WWW-Authenticate": "Bearer"}
                response = error_response(error.http_status, error_body(error), headers)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, header: str) -> AuthenticationError | None:
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() != "bearer" or not credentials.strip():
            return AuthenticationError(
                "You didn't provide an API key. "
                "Provide it in the header 'Authorization: Bearer YOUR_KEY'."
            )
        given = credentials.strip().encode()
        # All keys are compared: stopping at a match would reveal its position by the time taken.
        if sum(hmac.compare_digest(given, key) for key in self._keys):
            return None
        return AuthenticationError("Incorrect API key provided.")
