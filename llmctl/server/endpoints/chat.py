"""`/v1/chat/completions`."""

from fastapi import APIRouter, Request, Response

from llmctl.server.async_bridge import cancel_on_disconnect
from llmctl.server.convert.base import ResponseMetadata
from llmctl.server.convert.chat import (
    chat_completion,
    chat_completion_events,
    chat_generation_request,
)
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.chat import ChatCompletion, ChatCompletionRequest
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import STREAM_RESPONSES, EventStream


def add_chat_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the route."""

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM_RESPONSES)
    async def create_chat_completion(
        body: ChatCompletionRequest, request: Request, response: Response
    ) -> ChatCompletion | Response:
        record: RequestRecord = request.state.record
        record.model, record.stream = body.model, body.stream is True
        generation = chat_generation_request(body, served.resolve_adapter(body.model))
        generation, headers = await served.fit_context(generation)
        metadata = ResponseMetadata(f"chatcmpl-{generation.request_id}", body.model)
        if body.stream:
            chunks = served.stream(generation, record)
            events = chat_completion_events(metadata, body, chunks)
            return EventStream(events, record, ping_s=served.config.ping_s, headers=headers)
        response.headers.update(headers)
        result = await cancel_on_disconnect(served.generate(generation, record), request.receive)
        return chat_completion(metadata, body, result)
