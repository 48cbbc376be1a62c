"""How does the server take a port, run, and come to an orderly end?"""

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
from llmctl.server.middleware.limits import HeaderTimeoutProtocol

ABORT_GRACE_S = 5.0
"""How long replies cut off at the deadline have to tell their clients."""

KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that it is never the server that drops one in the
moment a client reuses it."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port and listen on it; 0 takes a free one.

    It listens at once, or a second server could take the port while this one loads its model.
    Whoever connects waits for `run`, or for `answer_while_loading`.

    Raises:
        ConfigError: the port is taken, privileged or no port, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is not between 0 and 65535", hint="try --port 8000")
    not_ours = ConfigError(
        f"{host!r} is not an address of this machine",
        hint="--host 127.0.0.1 is this machine alone, --host 0.0.0.0 is every network it is on",
    )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise not_ours from error
    # Of a name with both, most clients try the IPv4 address.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        sock = socket.create_server(
            address,
            family=family,
            dualstack_ipv6=address[0] == "::" and socket.has_dualstack_ipv6(),
        )
        # asyncio sets this only on sockets it makes itself; without it tokens wait for each other.
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
                    f"port {port} on {host} is only for privileged users", hint="try --port 8000"
                ) from error
            case errno.EADDRNOTAVAIL:
                raise not_ours from error
            case _:
                raise ConfigError(
                    f"cannot listen on port {port} of {host}: {error.strerror}"
                ) from error


def socket_url(sock: socket.socket, *, tls: bool = False) -> str:
    """Return the base URL of what listens on the socket, without `/v1`."""
    host, port = sock.getsockname()[:2]
    address = f"[{host}]" if sock.family == socket.AF_INET6 else host
    return f"{'https' if tls else 'http'}://{address}:{port}"


class Server(uvicorn.Server):
    """Runs an app until SIGTERM, SIGINT or `should_exit`; then lets running replies finish.

    Args:
        on_ready: called in the event loop's thread once requests are answered and signals heard.
        on_deadline: called in the event loop's thread when replies still run after `drain_s`
            seconds; it ends them, so that every client hears of it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_deadline: Callable[[], None],
        drain_s: float,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=HeaderTimeoutProtocol,
                ssl_certfile=ssl_certfile,
                ssl_keyfile=ssl_keyfile,
                ws="none",
                lifespan="off",
                log_config=None,
                # Boundary logs what fails; uvicorn would add every reply that was cut off.
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
        """Handle signals while running, and unlike uvicorn do not raise them again afterwards.

        That would kill the process before its engine is closed.
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
    """Serve on the socket, and close it, until a signal ends it; return that signal.

    A signal lets running replies finish for `drain_s` seconds, then `on_deadline` ends them (see
    `ServerClient`); a second SIGINT ends at once.
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
