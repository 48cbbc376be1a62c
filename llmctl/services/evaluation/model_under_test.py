"""The evaluated model, local or behind a server, and the judge model."""

from collections.abc import Iterator
from contextlib import contextmanager

from llmctl.config import EvalConfig
from llmctl.config.settings import ResolvedConfig
from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.engine.openai.wire import base_models
from llmctl.engine.registry import create_engine
from llmctl.errors import ConfigError
from llmctl.services.evaluation.request import EvalObserver
from llmctl.types import ApiEndpoint, ProgressCallback

_VARIABLE = "variable"
"""Origin of a setting from an environment variable."""


@contextmanager
def open_model_under_test(
    resolved: ResolvedConfig[EvalConfig], observer: EvalObserver, progress: ProgressCallback
) -> Iterator[BaseEngine]:
    """Load the local model, or connect to the server.

    Raises:
        ConfigError: the server has several models and none is named.
        LlmctlError: as `BaseEngine.load`.
    """
    config = resolved.values
    if config.base_url is not None:
        endpoint = ApiEndpoint(config.base_url, _served_name(resolved), config.api_key)
        with connect(endpoint, "--model", progress) as client:
            yield client
        return
    with create_engine(config.model_spec()) as engine:
        engine.load(progress)
        observer.loaded(engine.info())
        yield engine


def _served_name(resolved: ResolvedConfig[EvalConfig]) -> str | None:
    """Return the model's name on the server; None if the user did not name one.

    The default and LLMCTL_MODEL name a local model.
    """
    origin = resolved.origins.get("model", _VARIABLE)
    return None if origin == _VARIABLE else resolved.values.model


@contextmanager
def connect(
    endpoint: ApiEndpoint, option: str, progress: ProgressCallback
) -> Iterator[OpenAIBatchClient]:
    """Yield a client of a server's model.

    Args:
        endpoint: the server, and its model unless it has only one.
        option: that names the model, for the message.
        progress: receives the progress of the connection.

    Raises:
        ConfigError: the server has several models and none is named.
        LlmctlError: as `OpenAIClient.load`.
    """
    with OpenAIBatchClient(endpoint) as client:
        client.load(progress)
        models = base_models(client.models)
        if endpoint.model is None and len(models) > 1:
            raise ConfigError(
                f"{client.url} serves {len(models)} models",
                hint=f"{option} {' or '.join(models[:5])}",
            )
        yield client


def model_identity(engine: BaseEngine) -> dict[str, str]:
    """Return the model settings that the scores depend on."""
    if isinstance(engine, OpenAIBatchClient):
        return {"endpoint": engine.url, "model": engine.info().model_id}
    info = engine.info()
    how = {
        "model": info.model_id,
        "weights": info.weights_fingerprint or "none",
        "dtype": info.dtype,
        "quant": info.quant,
        "template": info.template_fingerprint or "none",
    }
    if info.adapter_fingerprint is not None:
        how["adapter"] = info.adapter_fingerprint
    return how


@contextmanager
def open_judge(
    resolved: ResolvedConfig[EvalConfig], progress: ProgressCallback
) -> Iterator[OpenAIBatchClient | None]:
    """Connect to the judge model's server, if one is configured.

    Raises:
        ConfigError: the judge has settings but no server, or the server has several models and
            none is named.
        LlmctlError: as `OpenAIClient.load`.
    """
    config = resolved.values
    if config.judge_base_url is None:
        # A key in an environment variable is for the runs that have a judge.
        key_origin = resolved.origins.get("judge_api_key", _VARIABLE)
        if config.judge_model or key_origin != _VARIABLE:
            raise ConfigError("the judge has no server", hint="--judge-base-url URL")
        yield None
        return
    endpoint = ApiEndpoint(config.judge_base_url, config.judge_model, config.judge_api_key)
    with connect(endpoint, "--judge-model", progress) as client:
        yield client
