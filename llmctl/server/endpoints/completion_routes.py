"""Which URLs take raw text, and what does each do?"""

import asyncio
import time

from fastapi import APIRouter, Request, Response

from llmctl.server.cancel_on_disconnect import cancel_on_disconnect
from llmctl.server.convert import ResponseMetadata
from llmctl.server.endpoints.completions import complete, completion_events, completion_requests
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.completions import (
    Completion,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import EventStream


def add_completion_routes(router: APIRouter, serving: ServedModel) -> None:
    """Add what completes, cuts up and joins raw text."""
    engine = serving.engine

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": {EventStream.media_type: {"schema": {"type": "string"}}}}},
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Completion | Response:
        record: RequestRecord = request.state.record
        record.model, record.stream = body.model, body.stream is True
        requests = completion_requests(body, serving.adapter_of(body.model))
        serving.check_count(len(requests))
        head = ResponseMetadata(f"cmpl-{requests[0].request_id}", body.model, int(time.time()))
        if body.stream:
            events = completion_events(serving, body, requests, record, head)
            return EventStream(events, record, ping_s=serving.options.ping_s)
        answering = complete(serving, body, requests, record, head)
        return await cancel_on_disconnect(answering, request.receive)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Cut text up as the model sees it."""
        if body.model is not None:
            serving.adapter_of(body.model)
        ids = await asyncio.to_thread(
            engine.tokenize, body.prompt, add_special_tokens=body.add_special_tokens
        )
        return TokenizeResponse(
            tokens=ids, count=len(ids), max_model_len=engine.info().context_length
        )

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """Join tokens into text."""
        if body.model is not None:
            serving.adapter_of(body.model)
        return DetokenizeResponse(prompt=await asyncio.to_thread(engine.detokenize, body.tokens))
