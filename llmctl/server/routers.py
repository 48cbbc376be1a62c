"""Which URLs are there, and what does each do?"""

import time
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from llmctl.engine.base import BaseEngine
from llmctl.engine.stream import Fold
from llmctl.errors import ModelNotFoundError
from llmctl.server.convert import ReplyHead, chat_completion, generation_request
from llmctl.server.handoff import chunks_of
from llmctl.server.hangup import unless_gone
from llmctl.server.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    ErrorResponse,
    Health,
    Model,
    ModelList,
)
from llmctl.server.sse import EventStream, chat_events
from llmctl.server.strict_json import StrictJSONRoute
from llmctl.types import GenerationRequest, GenerationResult


def make_router(engine: BaseEngine, served_names: tuple[str, ...]) -> APIRouter:
    """Build the routes of one engine, which answers to its model id and `served_names`."""
    router = APIRouter(
        route_class=StrictJSONRoute,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    started = int(time.time())

    def models() -> dict[str, Model]:
        names = (engine.info().model_id, *served_names)
        return {name: Model(id=name, created=started) for name in names}

    def model(name: str) -> Model:
        served = models()
        if name not in served:
            raise ModelNotFoundError(
                f"The model `{name}` does not exist or you do not have access to it.",
                hint=f"served here: {', '.join(served)}",
            )
        return served[name]

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {EventStream.media_type: {"schema": {"type": "string"}}}}},
    )
    async def create_chat_completion(
        body: ChatCompletionRequest, request: Request
    ) -> ChatCompletion | Response:
        model(body.model)
        generation = generation_request(body)
        head = ReplyHead(f"chatcmpl-{generation.request_id}", body.model, int(time.time()))
        if body.stream:
            options = body.stream_options
            events = chat_events(
                chunks_of(engine, generation),
                head,
                include_usage=options is not None and options.include_usage is True,
                log_id=request.state.request_id,
            )
            return EventStream(events)
        result = await unless_gone(_whole_reply(engine, generation), request.receive)
        return chat_completion(head, result, logprobs=body.logprobs is True)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=list(models().values()))

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Model:
        return model(name)

    @router.get("/health")
    async def health() -> Health:
        """Answer 503 when the engine is not loaded, closing or closed."""
        return Health(model=engine.info().model_id, in_flight=engine.in_flight)

    return router


async def _whole_reply(engine: BaseEngine, request: GenerationRequest) -> GenerationResult:
    folded = Fold()
    async with aclosing(chunks_of(engine, request)) as chunks:
        async for chunk in chunks:
            folded.add(chunk)
    return folded.result()
