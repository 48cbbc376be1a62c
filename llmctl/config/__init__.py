"""Configuration: the settings of each command, the data folder and environment variables."""

import os
from pathlib import Path

from llmctl.config.evaluation import EvalConfig
from llmctl.config.finetune import TrainConfig
from llmctl.config.model import DEFAULT_MODEL
from llmctl.config.serve import ContextOverflow, ServeConfig, is_loopback

__all__ = [
    "DEFAULT_MODEL",
    "ContextOverflow",
    "EvalConfig",
    "ServeConfig",
    "TrainConfig",
    "is_loopback",
    "store_home",
    "wants_traceback",
]


def store_home() -> Path:
    """Return the absolute data folder of llmctl: `$LLMCTL_HOME`, or else `~/.cache/llmctl`.

    The folder may not exist yet.
    """
    configured = os.environ.get("LLMCTL_HOME")
    return Path(configured).expanduser().resolve() if configured else Path.home() / ".cache/llmctl"


def wants_traceback() -> bool:
    """Whether `LLMCTL_TRACEBACK` turns on tracebacks of expected errors."""
    return os.environ.get("LLMCTL_TRACEBACK", "") not in ("", "0")
