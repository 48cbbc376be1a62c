"""The story of `llmctl serve`: take the port, load the model, answer, end in order."""

import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine, SupportsAdapters, require
from llmctl.engine.registry import create_engine
from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor import open_tracker, tracked
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
    options: ServeConfig,
    ready: Callable[[str, EngineInfo], None],
    progress: ProgressCallback = ignore_progress,
    warn: Callable[[str], None] = lambda _: None,
) -> signal.Signals | None:
    """Serve a model until a signal ends it; return that signal.

    Args:
        ready: called once, with the server's URL, when requests are answered.
        warn: told in a line what goes wrong beside the serving.

    Raises:
        ConfigError: the port, the certificate or an adapter cannot be had.
        ModelNotFoundError, ModelLoadError, OutOfMemoryError: as `BaseEngine.load`.
    """
    _check_certificate(options)
    # The port first: a taken one must not cost the minutes that loading takes.
    with (
        closing(bind(options.host, options.port)) as sock,
        create_engine(spec) as engine,
        ExitStack() as stack,
    ):
        with answer_while_loading(sock, options):
            engine.load(progress)
            for name, folder in options.adapters:
                require(engine, SupportsAdapters).load_adapter(name, folder)
            observers = stack.enter_context(_tracking(engine, options, progress, warn))
        url, info = socket_url(sock, tls=options.ssl_certfile is not None), engine.info()
        return run(
            create_app(engine, options, observers),
            sock,
            drain_s=options.drain_s,
            on_ready=lambda: ready(url, info),
            on_deadline=engine.close,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
        )


def _check_certificate(options: ServeConfig) -> None:
    if options.ssl_certfile is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            options.ssl_certfile, options.ssl_keyfile
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {options.ssl_certfile} with the key {options.ssl_keyfile} "
            f"cannot be used: {error}"
        ) from error


@contextmanager
def _tracking(
    engine: BaseEngine,
    options: ServeConfig,
    progress: ProgressCallback,
    warn: Callable[[str], None],
) -> Iterator[list[RequestObserver]]:
    """Keep a run of this server, if it is to be tracked."""
    if not options.track:
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
            "adapters": ", ".join(name for name, _ in options.adapters),
        },
    )
    tracker = open_tracker(start, tracking_uri=options.tracking_uri, warn=warn, progress=progress)
    with (
        tracked(tracker),
        closing(
            ServingMonitor(
                tracker,
                share=options.trace_share,
                log_content=options.log_content,
                model_id=info.logged_model_id,
                gauges=lambda: _gauges(engine),
            )
        ) as monitor,
    ):
        yield [_Traced(monitor)]


def _gauges(engine: BaseEngine) -> dict[str, float]:
    try:
        state = engine.state()
    except LlmctlError:
        return {}
    return {"serve/rows": state.running, "serve/queue": state.waiting}


class _Traced:
    """Passes on what the tracker keeps of a request: those a model answered."""

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
