"""Listening socket, and the server from its start to an orderly shutdown."""

import asyncio
import contextlib
import errno
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from llmctl.errors import ConfigError
from llmctl.server.middleware.limits import HEADERS_TIMEOUT_S, protocol_with_timeout

ABORT_GRACE_S = 5.0
"""Seconds that replies aborted at the deadline have to send their error."""

KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections: otherwise the server could close one at the moment a
client reuses it."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port; port 0 selects a free one.

    It listens immediately, so that no other server can take the port while this one loads its
    model. Connections wait for `run` or for `answer_while_loading`.

    Raises:
        ConfigError: the port is in use, privileged or out of range, or `host` is not an address of
            this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is not between 0 and 65535", hint="try --port 8000")
    foreign_host = ConfigError(
        f"{host!r} is not an address of this machine",
        hint="--host 127.0.0.1 serves this machine only, --host 0.0.0.0 all of its networks",
    )
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise foreign_host from error
    # Of a name with both families, most clients try the IPv4 address.
    family, _, _, _, address = min(entries, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        sock = socket.create_server(
            address,
            family=family,
            dualstack_ipv6=address[0] == "::" and socket.has_dualstack_ipv6(),
        )
        # asyncio sets this only on sockets it creates; without it tokens are delayed (Nagle).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise ConfigError(
                    f"port {port} on {host} is in use",
                    hint=f"try --port {port + 1}; another llmctl may be running",
                ) from error
            case errno.EACCES:
                raise ConfigError(
                    f"port {port} on {host} is reserved for privileged users",
                    hint="try --port 8000",
                ) from error
            case errno.EADDRNOTAVAIL:
                raise foreign_host from error
            case _:
                raise ConfigError(
                    f"cannot listen on port {port} of {host}: {error.strerror}"
                ) from error


def socket_url(sock: socket.socket, *, tls: bool = False) -> str:
    """Return the base URL of the server that listens on the socket, without `/v1`."""
    host, port = sock.getsockname()[:2]
    address = f"[{host}]" if sock.family == socket.AF_INET6 else host
    return f"{'https' if tls else 'http'}://{address}:{port}"


class Server(uvicorn.Server):
    """Runs an app until SIGTERM, SIGINT or `should_exit`; then lets running replies finish.

    Args:
        on_ready: called in the event loop's thread once requests are answered and signals handled.
        on_deadline: called in the event loop's thread when replies still run after `drain_s`
            seconds; it must end them, so that every client gets an error.
        drain_s: seconds that running replies have to finish.
        headers_timeout_s: seconds that a client has to send the headers of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_deadline: Callable[[], None],
        drain_s: float,
        headers_timeout_s: float = HEADERS_TIMEOUT_S,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_with_timeout(headers_timeout_s),
                ssl_certfile=ssl_certfile,
                ssl_keyfile=ssl_keyfile,
                ws="none",
                lifespan="off",
                log_config=None,
                # RequestContextMiddleware logs failures; uvicorn would add every aborted reply.
                log_level="critical",
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(drain_s + ABORT_GRACE_S),
            )
        )
        self.ended_by: signal.Signals | None = None
        self._drain_s = drain_s
        self._on_ready = on_ready
        self._on_deadline = on_deadline

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        deadline = asyncio.get_running_loop().call_later(self._drain_s, self._on_deadline)
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.ended_by = signal.Signals(sig)
        super().handle_exit(sig, frame)
        if self.force_exit:
            # Since Python 3.12 uvicorn waits for open connections even then.
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while running. Unlike uvicorn, do not raise them again afterwards: that
        would kill the process before its engine is closed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {sig: signal.signal(sig, self.handle_exit) for sig in handled}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def run(
    app: ASGIApp,
    sock: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_deadline: Callable[[], None],
    drain_s: float,
    ssl_certfile: str | None = None,
    ssl_keyfile: str | None = None,
) -> signal.Signals | None:
    """Serve on the socket until a signal, close the socket, and return the signal.

    After the signal, running replies have `drain_s` seconds to finish, then `on_deadline` ends
    them (see `Server`). A second SIGINT ends the server immediately.
    """
    server = Server(
        app,
        drain_s=drain_s,
        on_ready=on_ready,
        on_deadline=on_deadline,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
    )
    server.run(sockets=[sock])
    return server.ended_by
