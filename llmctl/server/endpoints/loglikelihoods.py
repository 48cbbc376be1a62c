"""`/v1/loglikelihoods`: log-likelihoods of texts that share a beginning, for evaluation."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from llmctl.engine.base import BaseEngine, SupportsScore, require
from llmctl.engine.loglikelihood import GroupScore, score_full_texts
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.server.async_bridge import timeout_error
from llmctl.server.errors import error_body
from llmctl.server.middleware.strict_json import StrictJSONRoute
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.base import StrictModel
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import EventStream
from llmctl.types import Score, ScoreRequest


class LoglikelihoodGroup(BaseModel):
    """Texts that each consist of the request's head, the group's stem and one of the endings."""

    model_config = {"strict": True, "extra": "forbid"}

    stem: str
    endings: Annotated[list[str], Field(min_length=1)]


class LoglikelihoodRequest(StrictModel):
    model: str
    head: str = ""
    """Common beginning of all texts. It only shortens the request: whole texts are tokenized."""
    groups: Annotated[list[LoglikelihoodGroup], Field(min_length=1)]


class _UnlimitedJSONRoute(StrictJSONRoute):
    """A request holds all samples of a subject, and the server has no other clients."""

    max_objects = math.inf


class _JSONLines(EventStream):
    """Lines of JSON in place of events. An error ends them without a line of its own."""

    media_type = "application/x-ndjson"

    def _error_event(self, error: Exception) -> bytes:
        super()._error_event(error)
        return b""


class _CancellableScore:
    """`SupportsScore.score` for a thread of its own, which the event loop can cancel."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine
        self._cancelled = False
        self._pending: Future[list[tuple[Score, ...]]] | None = None

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[tuple[Score, ...]]:
        """Return the scores.

        Raises:
            CancelledError: after `cancel`.
            LlmctlError: as `SupportsScore.score`.
        """
        self._pending = pending = require(self._engine, SupportsScore).submit_scores(requests)
        if self._cancelled:
            pending.cancel()
        return pending.result()

    def cancel(self) -> None:
        self._cancelled = True
        if self._pending is not None:
            self._pending.cancel()


def loglikelihood_router(served: ServedModel) -> APIRouter:
    """Return the router, which has a route class of its own."""
    # Threads of its own: those that submit generation requests must not wait for the engine.
    threads = ThreadPoolExecutor(thread_name_prefix="llmctl-loglikelihood")
    router = APIRouter(route_class=_UnlimitedJSONRoute)

    # The first is the former name; vLLM's /score is a reranker. FastAPI needs the status code for
    # the schema of a response class without a `status_code` argument.
    @router.post("/v1/score", response_class=_JSONLines, include_in_schema=False)
    @router.post("/v1/loglikelihoods", response_class=_JSONLines, status_code=200)
    async def create_loglikelihoods(body: LoglikelihoodRequest, request: Request) -> _JSONLines:
        """Return a line of JSON for each group, in order, as soon as it is computed.

        `{"index": 0, "computed": 41, "scores": [{"logprob": -12.5, "tokens": 9}, ...]}`, where
        `logprob` sums all tokens of the text but the first, and `computed` counts the tokens that
        no prefix cache held; or `{"index": 0, "error": {...}}`.
        """
        record: RequestRecord = request.state.record
        record.model = body.model
        adapter = served.resolve_adapter(body.model)
        groups = [
            [body.head + group.stem + ending for ending in group.endings] for group in body.groups
        ]
        return _JSONLines(_lines(served, groups, adapter, threads), record)

    return router


def _next(scores: Iterator[GroupScore | LlmctlError]) -> GroupScore | LlmctlError | None:
    try:
        return next(scores, None)
    except EngineStoppedError:
        return None  # the response ends, and the client sees which groups are missing


async def _lines(
    served: ServedModel, groups: Sequence[Sequence[str]], adapter: str | None, threads: Executor
) -> AsyncGenerator[bytes, None]:
    loop, timeout_s = asyncio.get_running_loop(), served.config.request_timeout_s
    deadline = None if timeout_s is None else loop.time() + timeout_s
    score, index = _CancellableScore(served.engine), 0
    scores = score_full_texts(served.engine, groups, adapter, score=score)
    try:
        with served.admission():
            while True:
                async with asyncio.timeout_at(deadline):
                    group = await loop.run_in_executor(threads, _next, scores)
                if group is None:
                    return
                yield json.dumps({"index": index} | _group_fields(group)).encode() + b"\n"
                index += 1
    except TimeoutError as error:
        raise timeout_error(timeout_s) from error
    finally:
        score.cancel()


def _group_fields(group: GroupScore | LlmctlError) -> dict[str, object]:
    if isinstance(group, LlmctlError):
        return {"error": error_body(group).model_dump()}
    scores = [{"logprob": text.logprob, "tokens": text.token_count} for text in group.texts]
    return {"computed": group.computed_tokens, "scores": scores}
