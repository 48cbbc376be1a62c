"""Names of the backends, and their classes, which are imported on first use."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from llmctl.engine.base import BaseEngine
from llmctl.errors import ConfigError, MissingDependencyError
from llmctl.types import ApiEndpoint, ModelSpec

BACKENDS: dict[str, str] = {
    "hf": "llmctl.engine.hf_runner:HFRunner",
    "openai": "llmctl.engine.openai.client:OpenAIClient",
}
"""Name -> `module:class`. The class takes a `ModelSpec`; `openai` takes an `ApiEndpoint`."""


def create_engine(
    model: ModelSpec | ApiEndpoint,
    backend: str | None = None,
    *,
    backends: Mapping[str, str] = BACKENDS,
) -> BaseEngine:
    """Create an engine that is not loaded yet.

    Args:
        model: a model to load in this process, or one behind a server.
        backend: `hf` or `openai`, by default the one that fits `model`.
        backends: the backends to choose from, as `BACKENDS`.

    Raises:
        ConfigError: there is no such backend, or it does not fit `model`.
        MissingDependencyError: a package that the backend needs is not installed.
    """
    is_endpoint = isinstance(model, ApiEndpoint)
    if backend is None:
        backend = "openai" if is_endpoint else "hf"
    if backend not in backends:
        raise ConfigError(f"unknown backend {backend!r}", hint=f"one of: {', '.join(backends)}")
    if (backend == "openai") != is_endpoint:
        raise ConfigError(
            "the openai backend needs the URL of a server"
            if not is_endpoint
            else f"the backend {backend!r} loads a model and cannot use a server",
            hint="--base-url URL names a server",
        )
    module, _, name = backends[backend].partition(":")
    try:
        factory: Any = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "llmctl":
            raise  # a defect in llmctl, not a missing package
        raise MissingDependencyError(f"the backend {backend!r}", package) from error
    engine: BaseEngine = factory(model)
    return engine
