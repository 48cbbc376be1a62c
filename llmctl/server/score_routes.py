"""How likely are texts that begin alike? `/v1/score`, for exams; only where it was asked for."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from llmctl.engine.whole_texts import GroupScore, score_texts
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.server.errors import error_body
from llmctl.server.record import RequestRecord
from llmctl.server.schemas import WireRequest
from llmctl.server.serving import Serving
from llmctl.server.strict_json import StrictJSONRoute

MEDIA_TYPE = "application/x-ndjson"


class ScoreGroup(BaseModel):
    """Texts that begin with the head and the stem, and end differently."""

    model_config = {"strict": True, "extra": "forbid"}

    stem: str
    endings: Annotated[list[str], Field(min_length=1)]


class ScoreTextsRequest(WireRequest):
    model: str
    head: str = ""
    """What all texts begin with. It only keeps the request small: tokens are of whole texts."""
    groups: Annotated[list[ScoreGroup], Field(min_length=1)]


def score_router(serving: Serving) -> APIRouter:
    """Build the route."""
    router = APIRouter(route_class=StrictJSONRoute)

    @router.post("/v1/score", response_class=StreamingResponse)
    async def score(body: ScoreTextsRequest, request: Request) -> StreamingResponse:
        """Answer a line of JSON for each group, in order, as soon as it is known.

        `{"index": 0, "computed": 41, "scores": [{"logprob": -12.5, "tokens": 9}, ...]}`, where
        the logprob is of all tokens of the text but the first; or `{"index": 0, "error": {...}}`.
        """
        record: RequestRecord = request.state.record
        record.model = body.model
        adapter = serving.adapter_of(body.model)
        groups = [
            [body.head + group.stem + ending for ending in group.endings] for group in body.groups
        ]
        return StreamingResponse(
            _lines(score_texts(serving.engine, groups, adapter)), media_type=MEDIA_TYPE
        )

    return router


def _next(scored: Iterator[GroupScore | LlmctlError]) -> GroupScore | LlmctlError | None:
    try:
        return next(scored, None)
    except EngineStoppedError:
        return None  # the answer ends, and whoever waits sees what is missing


async def _lines(
    scored: Iterator[GroupScore | LlmctlError],
) -> AsyncGenerator[bytes, None]:
    index = 0
    while (group := await asyncio.to_thread(_next, scored)) is not None:
        line: dict[str, object] = {"index": index}
        if isinstance(group, LlmctlError):
            line["error"] = error_body(group).model_dump()
        else:
            line["computed"] = group.computed
            line["scores"] = [
                {"logprob": text.logprob, "tokens": text.token_count} for text in group.texts
            ]
        yield json.dumps(line).encode() + b"\n"
        index += 1
