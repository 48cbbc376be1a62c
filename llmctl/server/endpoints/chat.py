"""Which URLs are there, and what does each do?"""

import time
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from llmctl.errors import EngineStoppedError
from llmctl.server.cancel_on_disconnect import cancel_on_disconnect
from llmctl.server.convert import ResponseMetadata, chat_completion, generation_request
from llmctl.server.endpoints.adapters import add_adapter_routes
from llmctl.server.endpoints.completion_routes import add_completion_routes
from llmctl.server.endpoints.embeddings import add_embedding_routes
from llmctl.server.endpoints.response_routes import add_response_routes
from llmctl.server.metrics import CONTENT_TYPE_LATEST, Metrics
from llmctl.server.middleware.strict_json import StrictJSONRoute
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.chat import ChatCompletionRequest
from llmctl.server.schemas.chat_responses import (
    ChatCompletion,
    ErrorResponse,
    Health,
    Model,
    ModelList,
    Ready,
)
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import EventStream, chat_events
from llmctl.server.truncate_context import truncate_context

STALLED_S = 120.0
"""An engine that has work and takes no step for so long will not take one any more."""


_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _page() -> str:
    return files("llmctl.server").joinpath("page.html").read_text(encoding="utf-8")


def build_router(serving: ServedModel, metrics: Metrics) -> APIRouter:
    """Build the routes of one engine."""
    engine, ping_s = serving.engine, serving.options.ping_s
    router = APIRouter(
        route_class=StrictJSONRoute,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {EventStream.media_type: {"schema": {"type": "string"}}}}},
    )
    async def create_chat_completion(
        body: ChatCompletionRequest, request: Request, response: Response
    ) -> ChatCompletion | Response:
        record: RequestRecord = request.state.record
        record.model, record.stream = body.model, body.stream is True
        generation = generation_request(body, serving.adapter_of(body.model))
        generation, told = await truncate_context(generation, serving)
        head = ResponseMetadata(f"chatcmpl-{generation.request_id}", body.model, int(time.time()))
        if body.stream:
            options = body.stream_options
            events = chat_events(
                serving.chunks(generation, record),
                head,
                include_usage=options is not None and options.include_usage is True,
            )
            return EventStream(events, record, ping_s=ping_s, headers=told)
        response.headers.update(told)
        result = await cancel_on_disconnect(serving.reply(generation, record), request.receive)
        return chat_completion(head, result, logprobs=body.logprobs is True)

    add_completion_routes(router, serving)
    add_response_routes(router, serving)
    add_embedding_routes(router, serving)
    add_adapter_routes(router, serving)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[serving.describe(name) for name in serving.models()])

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Model:
        return serving.describe(name)

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        """Show a page to chat with the model."""
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _PAGE_POLICY})

    @router.get("/health")
    async def health() -> Health:
        """Answer 503 when the engine is closed, dead, or has work and no longer does it."""
        state = engine.state()
        if not state.alive or state.last_step_age_s > STALLED_S:
            raise EngineStoppedError(
                f"the engine has work and took no step for {state.last_step_age_s:.0f} seconds"
                if state.alive
                else "the engine is dead"
            )
        return Health(
            model=engine.info().model_id,
            in_flight=engine.in_flight,
            running=state.running,
            waiting=state.waiting,
            last_step_s=round(state.last_step_age_s, 3),
        )

    @router.get("/ready")
    async def ready() -> Ready:
        """Answer 503 once the server is about to end. Before it is loaded, `loading` answers."""
        return Ready(model=engine.info().model_id)

    @router.get("/metrics", response_class=Response)
    async def prometheus_metrics() -> Response:
        """Write what Prometheus collects."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
