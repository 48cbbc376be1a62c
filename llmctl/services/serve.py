"""Service of `llmctl serve`: bind the port, load the model, serve until a signal."""

import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine, SupportsAdapters, require
from llmctl.engine.registry import create_engine
from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor import check_tracking_uri, open_tracker, tracked
from llmctl.monitor.serving_monitor import ServingMonitor
from llmctl.server.app import create_app
from llmctl.server.request_log import RequestObserver, RequestRecord
from llmctl.server.run import bind, run, socket_url
from llmctl.server.startup import answer_while_loading
from llmctl.types import (
    EngineInfo,
    ModelSpec,
    ProgressCallback,
    RequestTrace,
    RunStart,
    ignore_progress,
)


def serve(
    spec: ModelSpec,
    config: ServeConfig,
    ready: Callable[[str, EngineInfo], None],
    progress: ProgressCallback = ignore_progress,
    warn: Callable[[str], None] = lambda _: None,
    engine_factory: Callable[[ModelSpec], BaseEngine] = create_engine,
) -> signal.Signals | None:
    """Serve a model until a signal ends it; return that signal.

    Args:
        spec: the model.
        config: of the server.
        ready: called once with the server's URL when it accepts requests.
        progress: of loading the model.
        warn: called with errors of tracking, a line each.
        engine_factory: creates the engine, which `serve` loads and closes.

    Raises:
        ConfigError: the port is taken, or the certificate or an adapter cannot be used.
        ModelNotFoundError, ModelLoadError, OutOfMemoryError: as `BaseEngine.load`.
    """
    config = expand_paths(config)
    _check_certificate(config)
    check_tracking_uri(config.tracking_uri, enabled=config.track)
    # The port first: if it is taken, the user learns it before minutes of loading.
    with (
        closing(bind(config.host, config.port)) as sock,
        engine_factory(spec) as engine,
        ExitStack() as stack,
    ):
        with answer_while_loading(sock, config):
            engine.load(progress)
            for name, folder in config.adapters:
                require(engine, SupportsAdapters).load_adapter(name, folder)
            observers = stack.enter_context(_tracking(engine, config, progress, warn))
        url, info = socket_url(sock, tls=config.ssl_certfile is not None), engine.info()
        return run(
            create_app(engine, config, observers),
            sock,
            drain_s=config.drain_s,
            on_ready=lambda: ready(url, info),
            on_deadline=engine.close,
            ssl_certfile=config.ssl_certfile,
            ssl_keyfile=config.ssl_keyfile,
        )


def expand_paths(config: ServeConfig) -> ServeConfig:
    """Return the config with `~` replaced by the home folder in its paths."""
    names = ("adapter_dir", "ssl_certfile", "ssl_keyfile")
    paths: dict[str, Any] = {
        name: str(Path(path).expanduser())
        for name in names
        if (path := getattr(config, name)) is not None
    }
    return replace(config, **paths)


def _check_certificate(config: ServeConfig) -> None:
    if config.ssl_certfile is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            config.ssl_certfile, config.ssl_keyfile
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {config.ssl_certfile} with the key {config.ssl_keyfile} "
            f"cannot be used: {error}"
        ) from error


@contextmanager
def _tracking(
    engine: BaseEngine,
    config: ServeConfig,
    progress: ProgressCallback,
    warn: Callable[[str], None],
) -> Iterator[list[RequestObserver]]:
    """Track the server as a run, if the config says so; yield the request observers."""
    if not config.track:
        yield []
        return
    info = engine.info()
    start = RunStart(
        kind="serve",
        model=info.model_id,
        params={
            "model": info.model_id,
            "quant": info.quant,
            "dtype": info.dtype,
            "device": info.device,
            "context_length": info.context_length,
            "adapters": ", ".join(name for name, _ in config.adapters),
        },
    )
    tracker = open_tracker(start, tracking_uri=config.tracking_uri, warn=warn, progress=progress)
    with (
        tracked(tracker),
        closing(
            ServingMonitor(
                tracker,
                share=config.trace_share,
                log_content=config.log_content,
                model_id=info.logged_model_id,
                gauges=lambda: _gauges(engine),
            )
        ) as monitor,
    ):
        yield [_TraceObserver(monitor)]


def _gauges(engine: BaseEngine) -> dict[str, float]:
    try:
        state = engine.state()
    except LlmctlError:
        return {}
    return {"serve/rows": state.running, "serve/queue": state.waiting}


class _TraceObserver:
    """Passes requests that a model answered to the serving monitor."""

    def __init__(self, monitor: ServingMonitor) -> None:
        self._monitor = monitor

    def observe(self, record: RequestRecord) -> None:
        if record.model is None:
            return
        usage = record.usage
        self._monitor.record(
            RequestTrace(
                record.request_id,
                started=record.started,
                duration_s=record.duration_s,
                ttft_s=record.first_token_s,
                prompt_tokens=0 if usage is None else usage.prompt_tokens,
                completion_tokens=0 if usage is None else usage.completion_tokens,
                cached_tokens=0 if usage is None else usage.cached_tokens,
                error=record.error or "",
                prompt=record.prompt,
                answer=record.answer,
            )
        )
