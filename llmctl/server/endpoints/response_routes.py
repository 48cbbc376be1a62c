"""`/v1/responses`: the newer API of OpenAI's clients, without memory."""

import time

from fastapi import APIRouter, Request, Response

from llmctl.server.cancel_on_disconnect import cancel_on_disconnect
from llmctl.server.convert import ResponseMetadata
from llmctl.server.endpoints.responses import ResponseWriter, response_request
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.responses import ResponseObject, ResponseRequest
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import EventStream
from llmctl.server.truncate_context import truncate_context


def add_response_routes(router: APIRouter, serving: ServedModel) -> None:
    """Add the route."""

    @router.post(
        "/v1/responses",
        response_model=ResponseObject,
        responses={200: {"content": {EventStream.media_type: {"schema": {"type": "string"}}}}},
    )
    async def create_response(
        body: ResponseRequest, request: Request, response: Response
    ) -> ResponseObject | Response:
        """Answer input items; nothing is kept, so a next turn brings all items along."""
        record: RequestRecord = request.state.record
        record.model, record.stream = body.model, body.stream is True
        generation = response_request(body, serving.adapter_of(body.model))
        generation, told = await truncate_context(generation, serving)
        head = ResponseMetadata(f"resp_{generation.request_id}", body.model, int(time.time()))
        writer = ResponseWriter(body, head)
        if body.stream:
            events = writer.events(serving.chunks(generation, record))
            return EventStream(events, record, ping_s=serving.options.ping_s, headers=told)
        response.headers.update(told)
        return writer.whole(
            await cancel_on_disconnect(serving.reply(generation, record), request.receive)
        )
