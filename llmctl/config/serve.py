"""What can be chosen of a server."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from llmctl.errors import ConfigError

ContextOverflow = Literal["refuse", "truncate-oldest"]


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where a server listens, whom it answers, and how much it takes on."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    served_names: tuple[str, ...] = ()
    """Model names besides the model's own id."""
    adapters: tuple[tuple[str, str], ...] = ()
    """Name and folder of LoRA adapters, each served as `model:name`."""
    adapter_dir: str | None = None
    """Folder of adapters that clients may load by name while the server runs."""
    drain_s: float = 30.0
    """Seconds that running replies may go on after the server is asked to end."""

    api_keys: tuple[str, ...] = ()
    """Any of them is good; none is needed where there are none."""
    insecure: bool = False
    """Serve other machines without a key."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may use the server; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names in the `Host` header that are accepted; `*.example.com` is every subdomain.
    With an API key the header is checked only if there are any."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None

    max_queue: int = 64
    """Requests that may wait for a row; more are refused with 429."""
    request_timeout_s: float | None = None
    """Seconds from a request to the end of its reply."""
    max_body_bytes: int = 10 * 2**20
    ping_s: float = 15.0
    """A stream that is silent so long sends a comment, so that nobody takes it for dead; 0 never
    does."""
    overflow: ContextOverflow = "refuse"
    """What happens to a conversation that is longer than the context."""

    log_requests: bool = True
    """A JSON line on stderr for every request."""
    log_content: bool = False
    """Prompts and replies too."""

    track: bool = False
    """Keep a run of the server, with figures for each minute."""
    tracking_uri: str | None = None
    trace_share: float = 0.0
    """Part of the requests of which a tracked server keeps a trace, from 0 to 1."""

    def __post_init__(self) -> None:
        if any(not key.isascii() or not key.isprintable() or not key for key in self.api_keys):
            raise ConfigError(
                "an API key is empty or has characters that no HTTP header can carry",
                hint="use printable ASCII; `openssl rand -hex 24` makes a good one",
            )
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ConfigError("--ssl-certfile and --ssl-keyfile go together")
        for name in self.allowed_hosts:
            if not _is_host_pattern(name):
                raise ConfigError(
                    f"--allowed-host {name!r} is not a host name",
                    hint="write it without scheme and port, such as llm.example.com or "
                    "*.example.com",
                )
        if "*" in self.cors_origins:
            raise ConfigError(
                "'*' would let every web page use this server",
                hint="name the origins, such as --cors-origin https://chat.example",
            )
        if not (self.api_keys or self.insecure or is_loopback(self.host)):
            raise ConfigError(
                f"{self.host} is open to other machines, and there is no API key",
                hint="give one with --api-key (or LLMCTL_API_KEY), or accept it with --insecure",
            )


def _is_host_pattern(text: str) -> bool:
    """Return whether a text is an IP address, a host name, or `*.` and a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*)", text) is not None
    return True


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
