"""The story of `llmctl serve`: take the port, load the model, answer, end in order."""

import signal
from collections.abc import Callable
from contextlib import closing

from llmctl.config import ServeOptions
from llmctl.engine.registry import create_engine
from llmctl.server.app import create_app
from llmctl.server.run import bind, run, url_of
from llmctl.types import EngineInfo, ModelSpec, ProgressCallback, ignore_progress


def serve(
    spec: ModelSpec,
    options: ServeOptions,
    ready: Callable[[str, EngineInfo], None],
    progress: ProgressCallback = ignore_progress,
) -> signal.Signals | None:
    """Serve a model until a signal ends it; return that signal.

    Args:
        ready: called once, with the server's URL, when requests are answered.

    Raises:
        ConfigError: the port cannot be had; the model has not been touched then.
        ModelNotFoundError, ModelLoadError, OutOfMemoryError: as `BaseEngine.load`.
    """
    # The port first: a taken one must not cost the minutes that loading takes.
    with closing(bind(options.host, options.port)) as sock, create_engine(spec) as engine:
        engine.load(progress)
        app = create_app(engine, served_names=options.served_names)
        url, info = url_of(sock), engine.info()
        return run(
            app,
            sock,
            drain_s=options.drain_s,
            on_ready=lambda: ready(url, info),
            on_deadline=engine.close,
        )
