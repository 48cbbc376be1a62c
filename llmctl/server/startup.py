"""Answers to requests that arrive while the model is being loaded."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from llmctl.config import ServeConfig
from llmctl.errors import EngineStoppedError
from llmctl.server.errors import error_body, error_response
from llmctl.server.middleware.request_context import RequestContextMiddleware
from llmctl.server.run import Server

RETRY_AFTER_S = 5
"""`Retry-After` of a request that arrives before the model is loaded."""

SHUTDOWN_WAIT_S = 1.0
"""Longest wait for connections with an incomplete request when the model is loaded."""


@contextmanager
def answer_while_loading(sock: socket.socket, options: ServeConfig) -> Iterator[None]:
    """Answer requests on a listening socket from a thread for as long as the context lasts.

    Connections made later wait for the owner of the socket. The caller loads the model in its own
    thread, so that errors and Ctrl-C reach it.
    """
    server = Server(
        RequestContextMiddleware(_answer),
        on_deadline=lambda: None,
        drain_s=0,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
    )
    # The server closes the socket that it runs on.
    sockets = {"sockets": [sock.dup()]}
    thread = threading.Thread(target=server.run, kwargs=sockets, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(SHUTDOWN_WAIT_S)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    # An unread body would reset the connection, and the client would not see the response.
    while (await receive()).get("more_body"):
        pass
    # The next request must reach the loaded server, not this one.
    headers = {"connection": "close"}
    if scope["path"] == "/health":
        await JSONResponse({"status": "loading"}, headers=headers)(scope, receive, send)
        return
    error = EngineStoppedError("the model is being loaded", hint="try again later")
    headers |= {"retry-after": str(RETRY_AFTER_S)}
    response = error_response(error.http_status, error_body(error), headers)
    await response(scope, receive, send)
