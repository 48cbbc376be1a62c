"""Where llmctl keeps things and which variables it reads. Variables never override an option."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where a server listens, and what its model answers to."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    served_names: tuple[str, ...] = ()
    """Model names besides the model's own id."""
    drain_s: float = 30.0
    """Seconds that running replies may go on after the server is asked to end."""


def store_home() -> Path:
    """Return the absolute folder of everything llmctl keeps: `$LLMCTL_HOME` or `~/.cache/llmctl`.

    The folder may not exist yet.
    """
    configured = os.environ.get("LLMCTL_HOME")
    return Path(configured).expanduser().resolve() if configured else Path.home() / ".cache/llmctl"


def wants_traceback() -> bool:
    """Whether `LLMCTL_TRACEBACK` asks for tracebacks of expected errors too."""
    return os.environ.get("LLMCTL_TRACEBACK", "") not in ("", "0")
