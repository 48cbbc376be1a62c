"""Backend names, and the factories behind them, which import on use."""

from importlib import import_module
from typing import Any

from llmctl.engine.base import BaseEngine
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.types import ApiEndpoint, ModelSpec

BACKENDS: dict[str, str] = {
    "hf": "llmctl.engine.hf_runner:HFRunner",
    "openai": "llmctl.engine.openai.client:OpenAIClient",
}
"""Name -> `module:class`."""


def create_engine(
    spec: ModelSpec, backend: str | None = None, *, endpoint: ApiEndpoint | None = None
) -> BaseEngine:
    """Build an engine that is not loaded yet.

    Args:
        backend: in this process where not given, or what talks to the endpoint if there is one.
        endpoint: for the `openai` backend: the server that has the model.

    Raises:
        ConfigError: no backend has that name.
        MissingDependencyError: the backend's extra is not installed.
    """
    if backend is None:
        backend = "hf" if endpoint is None else "openai"
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}", hint=f"one of: {', '.join(BACKENDS)}")
    module, _, name = BACKENDS[backend].partition(":")
    try:
        factory: Any = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llmctl"):
            raise  # our own mistake, not a missing extra
        raise MissingDependencyError(f"backend {backend!r}", extra=backend) from error
    engine: BaseEngine = factory(spec) if endpoint is None else factory(spec, endpoint)
    return engine
