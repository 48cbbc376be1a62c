"""Backend names, and the factories behind them, which import on use."""

from importlib import import_module

from llmctl.engine.base import BaseEngine
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.types import ModelSpec

BACKENDS: dict[str, str] = {"hf": "llmctl.engine.hf_runner:HFRunner"}
"""Name -> `module:class`."""


def create_engine(spec: ModelSpec, backend: str = "hf") -> BaseEngine:
    """Build an engine that is not loaded yet.

    Raises:
        ConfigError: no backend has that name.
        MissingDependencyError: the backend's extra is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}", hint=f"one of: {', '.join(BACKENDS)}")
    module, _, name = BACKENDS[backend].partition(":")
    try:
        factory: type[BaseEngine] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llmctl"):
            raise  # our own mistake, not a missing extra
        raise MissingDependencyError(f"backend {backend!r}", extra=backend) from error
    return factory(spec)
