"""Who may use the server? Whoever has a key, where there are keys."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llmctl.errors import AuthenticationError
from llmctl.server.errors import error_body, error_response

PUBLIC_PATHS = frozenset({"/", "/health"})
"""Liveness for whoever watches over the server, and the page, which asks a person for the key."""


class ApiKeyMiddleware:
    """Lets nobody pass without one of the keys, which are compared in constant time."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            problem = self._problem(Headers(scope=scope).get("authorization", ""))
            if problem is not None:
                scope["state"]["record"].error = problem.code
                headers = {"WWW-Authenticate": "Bearer"}
                response = error_response(problem.http_status, error_body(problem), headers)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, header: str) -> AuthenticationError | None:
        scheme, _, sent = header.partition(" ")
        if scheme.lower() != "bearer" or not sent.strip():
            return AuthenticationError(
                "You didn't provide an API key. "
                "Provide it in the header 'Authorization: Bearer YOUR_KEY'."
            )
        given = sent.strip().encode()
        # Every key is compared, whichever fits.
        if sum(hmac.compare_digest(given, key) for key in self._keys):
            return None
        return AuthenticationError("Incorrect API key provided.")
