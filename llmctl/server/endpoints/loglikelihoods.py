"""How likely are texts that begin alike? `/v1/score`, for exams; only where it was asked for."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llmctl.engine.base import BaseEngine
from llmctl.engine.loglikelihood import GroupScore, score_full_texts
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.server.async_bridge import timeout_error
from llmctl.server.errors import error_body
from llmctl.server.middleware.strict_json import StrictJSONRoute
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.chat import StrictModel
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import EventStream
from llmctl.types import Score, ScoreRequest


class LoglikelihoodGroup(BaseModel):
    """Texts that begin with the head and the stem, and end differently."""

    model_config = {"strict": True, "extra": "forbid"}

    stem: str
    endings: Annotated[list[str], Field(min_length=1)]


class LoglikelihoodRequest(StrictModel):
    model: str
    head: str = ""
    """What all texts begin with. It only keeps the request small: tokens are of whole texts."""
    groups: Annotated[list[LoglikelihoodGroup], Field(min_length=1)]


class _ExamRoute(StrictJSONRoute):
    """The questions of a whole subject come at once, and nobody else waits."""

    max_objects = math.inf


class _Lines(EventStream):
    """Lines of JSON in place of events; after a failure no more come."""

    media_type = "application/x-ndjson"

    def _failure(self, error: Exception) -> bytes:
        super()._failure(error)
        return b""


class _Asking:
    """Asks the engine for scores, in a thread of its own, until the client leaves."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine
        self._left = False
        self._pending: Future[list[tuple[Score, ...]]] | None = None

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        """Do as `BaseEngine.score`; raise `CancelledError` after `leave`."""
        self._pending = pending = self._engine.submit_scores(requests)
        if self._left:
            pending.cancel()
        return pending.result()

    def leave(self) -> None:
        self._left = True
        if self._pending is not None:
            self._pending.cancel()


def loglikelihood_router(serving: ServedModel) -> APIRouter:
    """Build the route."""
    # Whoever waits for the model here leaves the threads alone in which replies are submitted.
    threads = ThreadPoolExecutor(thread_name_prefix="llmctl-score")
    router = APIRouter(route_class=_ExamRoute)

    @router.post("/v1/score", response_class=_Lines)
    async def score(body: LoglikelihoodRequest, request: Request) -> _Lines:
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
        return _Lines(_lines(serving, groups, adapter, threads), record)

    return router


def _next(scored: Iterator[GroupScore | LlmctlError]) -> GroupScore | LlmctlError | None:
    try:
        return next(scored, None)
    except EngineStoppedError:
        return None  # the answer ends, and whoever waits sees what is missing


async def _lines(
    serving: ServedModel, groups: Sequence[Sequence[str]], adapter: str | None, threads: Executor
) -> AsyncGenerator[bytes, None]:
    loop, limit_s = asyncio.get_running_loop(), serving.options.request_timeout_s
    deadline = None if limit_s is None else loop.time() + limit_s
    ask, index = _Asking(serving.engine), 0
    scored = score_full_texts(serving.engine, groups, adapter, score=ask)
    try:
        with serving.admitted():
            while True:
                async with asyncio.timeout_at(deadline):
                    group = await loop.run_in_executor(threads, _next, scored)
                if group is None:
                    return
                yield json.dumps({"index": index} | _told(group)).encode() + b"\n"
                index += 1
    except TimeoutError as error:
        raise timeout_error(limit_s) from error
    finally:
        ask.leave()


def _told(group: GroupScore | LlmctlError) -> dict[str, object]:
    if isinstance(group, LlmctlError):
        return {"error": error_body(group).model_dump()}
    scores = [{"logprob": text.logprob, "tokens": text.token_count} for text in group.texts]
    return {"computed": group.computed_tokens, "scores": scores}
