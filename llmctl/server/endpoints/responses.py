"""`/v1/responses`: OpenAI's Responses API without stored state."""

from fastapi import APIRouter, Request, Response

from llmctl.server.async_bridge import cancel_on_disconnect
from llmctl.server.convert.base import ResponseMetadata
from llmctl.server.convert.responses import (
    response_events,
    response_generation_request,
    response_object,
)
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.responses import ResponseObject, ResponseRequest
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import STREAM_RESPONSES, EventStream


def add_response_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the route."""

    @router.post("/v1/responses", response_model=ResponseObject, responses=STREAM_RESPONSES)
    async def create_response(
        body: ResponseRequest, request: Request, response: Response
    ) -> ResponseObject | Response:
        """Answer input items. Nothing is stored: the next turn must send all items again."""
        record: RequestRecord = request.state.record
        record.model, record.stream = body.model, body.stream is True
        generation = response_generation_request(body, served.resolve_adapter(body.model))
        generation, headers = await served.fit_context(generation)
        metadata = ResponseMetadata(f"resp_{generation.request_id}", body.model)
        if body.stream:
            events = response_events(metadata, body, served.stream(generation, record))
            return EventStream(events, record, ping_s=served.config.ping_s, headers=headers)
        response.headers.update(headers)
        result = await cancel_on_disconnect(served.generate(generation, record), request.receive)
        return response_object(metadata, body, result)
