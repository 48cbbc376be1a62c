"""Check of the `Host` header, against DNS rebinding.

A web page whose domain name is rebound to 127.0.0.1 has the origin of the server itself for the
browser: neither the loopback address nor CORS keeps it out. Its requests carry the page's name in
`Host`. An address cannot be rebound.
"""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from llmctl.config import is_loopback
from llmctl.server.errors import http_error_response

_HOST = re.compile(r"(\[(?P<address>[^\]]*)\]|(?P<name>[^:\[\]]*))(:\d*)?")


class HostCheckMiddleware:
    """Refuses requests whose `Host` is no name of this server with 403.

    Starlette's TrustedHostMiddleware has a fixed plain-text response, and cannot read IPv6
    addresses.

    Args:
        host: the address that the server listens on. For 0.0.0.0 and :: every IP address is
            accepted.
        allowed: further names; `*.example.com` stands for all subdomains.
    """

    def __init__(self, app: ASGIApp, *, host: str, allowed: Sequence[str]) -> None:
        self._app = app
        self._any_address = _is_wildcard(host)
        self._names = {normalize(name) for name in (host, *allowed) if not name.startswith("*.")}
        self._suffixes = tuple(normalize(name)[1:] for name in allowed if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            header = Headers(scope=scope).get("host")
            # Browsers always send the header. HTTP/1.0 clients may omit it.
            if header is not None and not self._is_allowed(host_name(header)):
                record = scope["state"]["record"]
                await http_error_response(_error(host_name(header)), record)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, name: str) -> bool:
        if is_loopback(name) or name in self._names or name.endswith(self._suffixes):
            return True
        return self._any_address and _is_address(name)


def host_name(header: str) -> str:
    """Return the name or address in a `Host` header, without port and brackets."""
    match = _HOST.fullmatch(header)
    return normalize(header if match is None else match["address"] or match["name"] or "")


def normalize(name: str) -> str:
    """Return a host name in lower case and without the dot of a fully qualified name."""
    return name.strip().lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_wildcard(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified


def _error(name: str) -> HTTPException:
    return HTTPException(
        403,
        f"{name!r} is not a host name of this server. If clients shall use it, start the server "
        f"with --allowed-host {name}, or with an --api-key.",
    )
