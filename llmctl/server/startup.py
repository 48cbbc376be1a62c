"""What does the server answer while its model is being loaded? That it is."""

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
"""When to ask again whether the model is loaded."""

SHUTDOWN_WAIT_S = 1.0
"""How long the loaded model waits for who has sent half a request."""


@contextmanager
def answer_while_loading(sock: socket.socket, options: ServeConfig) -> Iterator[None]:
    """Answer on a listening socket from a thread; who comes later is left to the socket's owner.

    The caller's own thread loads, so that errors and Ctrl-C come to it.
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
    # A body that is not read would reset the connection, and the client see no answer.
    while (await receive()).get("more_body"):
        pass
    # The next request is to find whoever listens then.
    headers = {"connection": "close"}
    if scope["path"] == "/health":
        await JSONResponse({"status": "loading"}, headers=headers)(scope, receive, send)
        return
    error = EngineStoppedError("the model is being loaded", hint="try again in a while")
    headers |= {"retry-after": str(RETRY_AFTER_S)}
    response = error_response(error.http_status, error_body(error), headers)
    await response(scope, receive, send)
