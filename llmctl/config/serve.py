"""Configuration of `llmctl serve`; a field is an option and a key of the YAML file."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le

from llmctl.config.model import LoadConfig, ParserConfig, spec_from_config
from llmctl.config.option import Option, parse_size
from llmctl.errors import ConfigError
from llmctl.types import DEFAULT_MAX_ROWS, KVQuant, MemoryLimits, ModelSpec

ContextOverflow = Literal["refuse", "truncate-oldest"]
_KV_CACHE_DTYPES: Final = {"auto": "none", "int8": "8bit"}
"""Values of vLLM's --kv-cache-dtype -> ours."""


def _parse_kv_quant(text: str) -> str:
    return _KV_CACHE_DTYPES.get(text, text)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ParserConfig, LoadConfig):
    """The settings of a server."""

    host: Annotated[str, Option(variable="LLMCTL_HOST")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Ge(0), Le(65535), Option(short="-p", variable="LLMCTL_PORT")] = 8000
    """Port to listen on; 0 selects a free one."""
    served_names: Annotated[
        tuple[str, ...], Option(name="served-model-name", aliases=("served-name",))
    ] = ()
    """Additional name of the model for clients; may be repeated."""
    adapter: Annotated[tuple[str, ...], Option(metavar="[NAME=]FOLDER")] = ()
    """LoRA adapter: NAME=FOLDER is served as MODEL:NAME, FOLDER alone is loaded with the model
    itself; may be repeated."""
    adapter_dir: str | None = None
    """Folder of adapters that clients may load by name while the server runs."""
    drain_s: Annotated[float, Ge(0), Option(name="shutdown-timeout", aliases=("drain",))] = 30.0
    """Seconds that running requests may take to finish after SIGTERM or Ctrl-C."""

    api_keys: Annotated[tuple[str, ...], Option(name="api-key", variable="LLMCTL_API_KEY")] = ()
    """API key that clients must send; may be repeated, and the variable may hold several separated
    by spaces."""
    api_key_file: str | None = None
    """File with an API key on each line; # starts a comment."""
    insecure: bool = False
    """Serve other machines without an API key."""
    cors_origins: Annotated[tuple[str, ...], Option(name="cors-origin")] = ()
    """Origin whose web pages may use the server, such as https://chat.example; may be repeated."""
    allowed_hosts: Annotated[
        tuple[str, ...], Option(name="allowed-host", variable="LLMCTL_ALLOWED_HOST")
    ] = ()
    """Additional host name that clients may use for this server, such as llm.example.com or
    *.example.com; may be repeated, and the variable may hold several separated by spaces. Without
    an API key, other names than localhost and --host are refused."""
    ssl_certfile: str | None = None
    """Certificate, to serve HTTPS."""
    ssl_keyfile: str | None = None
    """Private key of the certificate."""

    max_queue: Annotated[int, Ge(0)] = 64
    """Requests that may wait; further ones are refused with status 429."""
    request_timeout_s: Annotated[
        float | None, Ge(0.1), Option(name="request-timeout", default="no limit")
    ] = None
    """Seconds that a request may take."""
    max_body_bytes: Annotated[
        int, Ge(1), Option(name="max-body", metavar="SIZE", parse=parse_size)
    ] = 10 * 2**20
    """Largest request body, such as 10MiB."""
    ping_s: Annotated[float, Ge(0), Option(name="ping")] = 15.0
    """Seconds of silence after which a stream sends a comment, to keep the connection open; 0 sends
    none."""
    overflow: ContextOverflow = "refuse"
    """What to do with a conversation that is longer than the context."""

    log_requests: Annotated[bool, Option(name="request-log")] = True
    """Write a JSON line for every request to stderr."""
    log_content: bool = False
    """Add prompts and replies to these lines."""
    track: bool = False
    """Record the server as a run (see `llmctl runs`)."""
    tracking_uri: Annotated[
        str | None,
        Option(
            metavar="URI",
            default="$MLFLOW_TRACKING_URI, else SQLite in llmctl's home folder",
        ),
    ] = None
    """Tracking store: http://HOST:PORT or sqlite:///FILE.db."""
    trace_share: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the requests to record as traces; implies --track."""

    context_length: Annotated[
        int | None,
        Ge(1),
        Option(aliases=("max-model-len",), default="the model's, if memory holds it"),
    ] = None
    """Maximum tokens of prompt and reply together."""
    max_rows: Annotated[
        int | None,
        Ge(1),
        Option(name="max-num-seqs", aliases=("max-rows",), default=str(DEFAULT_MAX_ROWS)),
    ] = None
    """Maximum number of sequences generated at the same time."""
    kv_memory: Annotated[
        int | None,
        Option(metavar="SIZE", parse=parse_size, default="the free memory that it can use"),
    ] = None
    """Memory of the KV cache, such as 2GiB."""
    kv_quant: Annotated[
        KVQuant,
        Option(
            name="kv-cache-dtype",
            aliases=("kv-quant",),
            metavar="[none|8bit|auto|int8]",
            parse=_parse_kv_quant,
        ),
    ] = "none"
    """Quantize the KV cache to 8 bits; auto is none, and int8 is 8bit."""

    def __post_init__(self) -> None:
        if any(not key.isascii() or not key.isprintable() or not key for key in self.api_keys):
            raise ConfigError(
                "an API key is empty or has characters that no HTTP header can carry",
                hint="use printable ASCII; `openssl rand -hex 24` makes a good one",
            )
        names = [name for name, _ in map(_split_adapter, self.adapter)]
        if names.count("") > 1:
            raise ConfigError(
                f"the model itself can have one adapter, not {names.count('')}",
                hint="name them: --adapter NAME=FOLDER",
            )
        for name in names:
            if name and names.count(name) > 1:
                raise ConfigError(f"two adapters are named {name!r}")
        if self.adapter_dir is not None and not Path(self.adapter_dir).expanduser().is_dir():
            raise ConfigError(f"--adapter-dir {self.adapter_dir} is not a folder")
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
        has_key = bool(self.api_keys) or self.api_key_file is not None
        if not (has_key or self.insecure or is_loopback(self.host)):
            raise ConfigError(
                f"{self.host} is open to other machines, and there is no API key",
                hint="give one with --api-key (or LLMCTL_API_KEY), or accept it with --insecure",
            )

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        """Name and folder of the adapters that are served as `model:name`."""
        return tuple(pair for pair in map(_split_adapter, self.adapter) if pair[0])

    def model_spec(self) -> ModelSpec:
        """Return the model to load, with its own adapter and memory limits."""
        unnamed = [folder for name, folder in map(_split_adapter, self.adapter) if not name]
        limits = MemoryLimits(self.context_length, self.max_rows, self.kv_memory, self.kv_quant)
        return spec_from_config(self, adapter=unnamed[0] if unnamed else None, limits=limits)

    def read_api_keys(self) -> tuple[str, ...]:
        """Return the API keys of the options and of the file.

        Raises:
            ConfigError: the file cannot be read or has no key.
        """
        if self.api_key_file is None:
            return self.api_keys
        try:
            lines = Path(self.api_key_file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the API keys in {self.api_key_file}: {error}"
            ) from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{self.api_key_file} has no API key", hint="write one key per line")
        return (*self.api_keys, *keys)


def _split_adapter(text: str) -> tuple[str, str]:
    """Return name and folder of `NAME=FOLDER`; the name of `FOLDER` alone is empty."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals and re.fullmatch(r"[\w.-]+", name) else ("", text)


def _is_host_pattern(text: str) -> bool:
    """Return whether a text is an IP address, a host name, or `*.` and a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*)", text) is not None
    return True


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
