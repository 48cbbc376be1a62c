"""How is the server put together?"""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from llmctl import __version__
from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine
from llmctl.server import errors
from llmctl.server.endpoints.chat import build_router
from llmctl.server.endpoints.loglikelihoods import loglikelihood_router
from llmctl.server.metrics import Metrics
from llmctl.server.middleware.auth import ApiKeyMiddleware
from llmctl.server.middleware.limits import BodyLimitMiddleware
from llmctl.server.middleware.request_context import REQUEST_ID_HEADER, RequestContextMiddleware
from llmctl.server.request_log import RequestLog
from llmctl.server.request_record import RequestObserver
from llmctl.server.served_model import ServedModel
from llmctl.server.truncate_context import DROPPED_MESSAGES_HEADER

DEFAULTS = ServeConfig(log_requests=False)


def create_app(
    engine: BaseEngine,
    options: ServeConfig = DEFAULTS,
    observers: Sequence[RequestObserver] = (),
    *,
    scoring: bool = False,
) -> FastAPI:
    """Build the application around an engine, which stays the caller's to load and close.

    Args:
        observers: hear of every request besides the metrics and the log.
        scoring: answer `/v1/score` too, for exams.
    """
    app = FastAPI(
        title="llmctl",
        version=__version__,
        # Their pages load scripts from elsewhere; /openapi.json says the same.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(engine)
    watching: list[RequestObserver] = [metrics, *observers]
    if options.log_requests:
        watching.append(RequestLog())
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimitMiddleware, max_bytes=options.max_body_bytes)
    if options.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=options.api_keys)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            # OpenAI's client sends a dozen of its own, which change with its versions.
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, DROPPED_MESSAGES_HEADER, "retry-after"],
        )
    app.add_middleware(RequestContextMiddleware, observers=watching)
    errors.install_error_handlers(app)
    serving = ServedModel(engine, options)
    app.include_router(build_router(serving, metrics))
    if scoring:
        app.include_router(loglikelihood_router(serving))
    return app
