"""Assembly of the ASGI application: middleware, error handlers, routes."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from llmctl import __version__
from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine
from llmctl.server import errors
from llmctl.server.endpoints.adapters import add_adapter_routes
from llmctl.server.endpoints.chat import add_chat_routes
from llmctl.server.endpoints.completions import add_completion_routes
from llmctl.server.endpoints.embeddings import add_embedding_routes
from llmctl.server.endpoints.loglikelihoods import loglikelihood_router
from llmctl.server.endpoints.models import add_model_routes
from llmctl.server.endpoints.responses import add_response_routes
from llmctl.server.endpoints.status import add_status_routes
from llmctl.server.metrics import Metrics
from llmctl.server.middleware.auth import ApiKeyMiddleware
from llmctl.server.middleware.host_check import HostCheckMiddleware
from llmctl.server.middleware.limits import BODY_TIMEOUT_S, BodyLimitMiddleware
from llmctl.server.middleware.request_context import REQUEST_ID_HEADER, RequestContextMiddleware
from llmctl.server.middleware.strict_json import StrictJSONRoute
from llmctl.server.request_log import RequestLog, RequestObserver
from llmctl.server.schemas.base import ErrorResponse
from llmctl.server.served_model import DROPPED_MESSAGES_HEADER, TOOLS_HEADER, ServedModel

DEFAULTS = ServeConfig(log_requests=False)


def create_app(
    engine: BaseEngine,
    config: ServeConfig = DEFAULTS,
    observers: Sequence[RequestObserver] = (),
    *,
    scoring: bool = False,
    body_timeout_s: float = BODY_TIMEOUT_S,
) -> FastAPI:
    """Build the application around an engine. The caller loads and closes the engine.

    Args:
        observers: receive the record of every request, besides the metrics and the log.
        scoring: also serve `/v1/loglikelihoods`, for evaluation.
        body_timeout_s: seconds that a client has to send the body of a request.
    """
    app = FastAPI(
        title="llmctl",
        version=__version__,
        # The documentation pages load scripts from a CDN; /openapi.json has the same content.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(engine)
    all_observers: list[RequestObserver] = [metrics, *observers]
    if config.log_requests:
        all_observers.append(RequestLog())
    # The middleware added last is the outermost.
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=config.max_body_bytes, timeout_s=body_timeout_s
    )
    if config.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=config.api_keys)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            # OpenAI's client sends a dozen headers of its own, which change with its versions.
            allow_headers=["*"],
            expose_headers=[
                REQUEST_ID_HEADER,
                DROPPED_MESSAGES_HEADER,
                TOOLS_HEADER,
                "retry-after",
            ],
        )
    # A page that rebinds its name to this server does not know a key, so keys are sufficient.
    if config.allowed_hosts or not config.api_keys:
        app.add_middleware(HostCheckMiddleware, host=config.host, allowed=config.allowed_hosts)
    app.add_middleware(RequestContextMiddleware, observers=all_observers)
    errors.install_error_handlers(app)
    served = ServedModel(engine, config)
    app.include_router(_router(served, metrics))
    if scoring:
        app.include_router(loglikelihood_router(served))
    return app


def _router(served: ServedModel, metrics: Metrics) -> APIRouter:
    router = APIRouter(
        route_class=StrictJSONRoute,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    add_chat_routes(router, served)
    add_completion_routes(router, served)
    add_response_routes(router, served)
    add_embedding_routes(router, served)
    add_adapter_routes(router, served)
    add_model_routes(router, served)
    add_status_routes(router, served, metrics)
    return router
