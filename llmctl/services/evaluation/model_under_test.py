"""Who sits an exam? A model of ours, loaded for it, or a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmctl.config import EvalConfig
from llmctl.engine.models.provenance import Provenance
from llmctl.engine.registry import create_engine
from llmctl.evaluation.backend import ModelUnderTest, ServerModel
from llmctl.evaluation.scoring.judge import Judge
from llmctl.services.evaluation.request import EvalObserver
from llmctl.types import ModelSpec, ProgressCallback


@contextmanager
def open_model_under_test(
    config: EvalConfig, listener: EvalObserver, progress: ProgressCallback
) -> Iterator[ModelUnderTest]:
    """Load the model, or name the server."""
    if config.base_url is not None:
        from llmctl.evaluation.endpoint_adapter import resolve_server_model

        yield resolve_server_model(config.base_url, _served_name(config), config.api_key or "")
        return
    spec = ModelSpec(
        model=config.model,
        quant=config.quant,
        device=config.device,
        dtype=config.dtype,
        adapter=config.adapter,
        chat_template=config.chat_template,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    with create_engine(spec) as engine:
        engine.load(progress)
        listener.loaded(engine.info())
        yield engine


def _served_name(config: EvalConfig) -> str | None:
    """Return the model's name on the server; None asks the server for its only one."""
    return None if config.model == EvalConfig(dataset=("",)).model else config.model


def model_identity(candidate: ModelUnderTest) -> dict[str, str]:
    """Return what the numbers depend on besides the questions."""
    if isinstance(candidate, ServerModel):
        return {"endpoint": candidate.base_url, "model": candidate.model}
    info = candidate.info()
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


def provenance_of(config: EvalConfig, candidate: ModelUnderTest) -> Provenance | None:
    """Return how the model came to be, if we taught it."""
    if isinstance(candidate, ServerModel):
        return None
    for folder in (config.adapter, config.model):
        if folder is not None:
            known = Provenance.read(Path(folder).expanduser())
            if known is not None:
                return known
    return None


def create_judge(config: EvalConfig) -> Judge | None:
    """Return who judges replies, if anybody was named.

    Raises:
        ConfigError: that server does not answer, or has several models and none was named.
    """
    if config.judge_base_url is None:
        return None
    from llmctl.evaluation.endpoint_adapter import resolve_server_model

    key = config.judge_api_key or ""
    return Judge(resolve_server_model(config.judge_base_url, config.judge_model, key))
