"""How are raw prompts completed, echoed and scored? `/v1/completions`, on the engine's terms."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

from llmctl.errors import RequestError
from llmctl.server.convert import ResponseMetadata, sampling_params, usage
from llmctl.server.endpoints.completion_logprobs import (
    EchoedPrompt,
    TextOffsets,
    completion_logprobs,
)
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    split_prompts,
)
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import DONE, format_event
from llmctl.types import (
    Choice,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ScoreRequest,
    Usage,
)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, which clients rely on; a raw prompt has no natural end."""


def completion_requests(body: CompletionRequest, adapter: str | None) -> list[GenerationRequest]:
    """Make a request of each prompt.

    Raises:
        RequestError: fields that do not go together.
    """
    if body.best_of not in (None, 1, body.n):
        raise RequestError(
            f"best_of is {body.best_of}; this server returns all it generates", param="best_of"
        )
    if body.max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens is 0, so nothing is asked for", param="max_tokens")
    if body.stream and body.echo and body.logprobs is not None:
        raise RequestError("'echo' with 'logprobs' cannot be streamed", param="echo")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    sampling = sampling_params(body, max_new_tokens=max_tokens, logprobs=body.logprobs)
    return [
        GenerationRequest(prompt=prompt, sampling=sampling, adapter=adapter)
        for prompt in split_prompts(body.prompt)
    ]


async def complete(
    serving: ServedModel,
    body: CompletionRequest,
    requests: Sequence[GenerationRequest],
    record: RequestRecord,
    head: ResponseMetadata,
) -> Completion:
    """Answer all prompts in one piece, side by side."""
    tasks = [asyncio.create_task(_one(serving, body, request, record)) for request in requests]
    try:
        replies = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    choices: list[CompletionChoice] = []
    counted = Usage(0, 0)
    for echo, result in replies:
        counted = _sum(counted, result.usage)
        for choice in result.choices:
            choices.append(_choice(len(choices), choice, echo, body.logprobs))
    record.usage = counted
    return Completion(
        id=head.id, created=head.created, model=head.model, choices=choices, usage=usage(counted)
    )


async def _one(
    serving: ServedModel, body: CompletionRequest, request: GenerationRequest, record: RequestRecord
) -> tuple[EchoedPrompt, GenerationResult]:
    echo = await _echo(serving, body, request) if body.echo else EchoedPrompt("")
    if body.max_tokens == 0:
        ids = await asyncio.to_thread(serving.engine.tokenize, _given(request))
        none = tuple(Choice("", "length") for _ in range(body.n or 1))
        return echo, GenerationResult(none, Usage(len(ids), 0))
    return echo, await serving.reply(request, record)


def _given(request: GenerationRequest) -> str | tuple[int, ...]:
    assert request.prompt is not None
    return request.prompt


async def _echo(
    serving: ServedModel, body: CompletionRequest, request: GenerationRequest
) -> EchoedPrompt:
    """Write the prompt out; with logprobs, as the model would have expected it."""
    engine, prompt = serving.engine, _given(request)
    ids = tuple(await asyncio.to_thread(engine.tokenize, prompt))
    text = prompt if isinstance(prompt, str) else await asyncio.to_thread(engine.detokenize, ids)
    if body.logprobs is None:
        return EchoedPrompt(text)
    first = await asyncio.to_thread(engine.detokenize, ids[:1])
    if len(ids) < 2:
        return EchoedPrompt(text, first)
    asked = ScoreRequest(ids[:1], (ids[1:],), adapter=request.adapter, logprobs=body.logprobs)
    ((score,),) = await serving.read(partial(engine.submit_scores, [asked]))
    return EchoedPrompt(text, first, score.tokens)


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
    )


def _choice(
    index: int, choice: Choice, echo: EchoedPrompt, logprobs: int | None
) -> CompletionChoice:
    described = None if logprobs is None else echo.logprobs(choice.logprobs, logprobs)
    return CompletionChoice(
        index=index,
        text=echo.text + choice.text,
        logprobs=described,
        finish_reason=choice.finish_reason,
    )


async def completion_events(
    serving: ServedModel,
    body: CompletionRequest,
    requests: Sequence[GenerationRequest],
    record: RequestRecord,
    head: ResponseMetadata,
) -> AsyncGenerator[bytes, None]:
    """Write the replies to all prompts as one stream of `text_completion` events."""
    include_usage = body.stream_options is not None and body.stream_options.include_usage is True
    exclude = None if include_usage else {"usage"}

    def event(*choices: CompletionChoice, counted: Usage | None = None) -> bytes:
        completion = Completion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=list(choices),
            usage=None if counted is None else usage(counted),
        )
        return format_event(completion.model_dump_json(exclude=exclude))

    counted = Usage(0, 0)
    async with aclosing(_pieces(serving, body, requests, record)) as pieces:
        async for choice, used in pieces:
            counted = _sum(counted, used)
            yield event(choice)
    record.usage = counted
    if include_usage:
        yield event(counted=counted)
    yield DONE


async def _pieces(
    serving: ServedModel,
    body: CompletionRequest,
    requests: Sequence[GenerationRequest],
    record: RequestRecord,
) -> AsyncGenerator[tuple[CompletionChoice, Usage], None]:
    """Yield what is written of each choice, piece by piece, and what is known of tokens by it."""
    choices, nothing = body.n or 1, Usage(0, 0)
    if body.max_tokens == 0:
        replies = [await _one(serving, body, request, record) for request in requests]
        for number, (echo, result) in enumerate(replies):
            for index, choice in enumerate(result.choices):
                counted = nothing if index else result.usage
                yield _choice(number * choices + index, choice, echo, None), counted
        return
    offsets = [TextOffsets() for _ in range(len(requests) * choices)]
    async with _accepted(serving, requests, record, choices) as chunks:
        if body.echo:
            for number, request in enumerate(requests):
                echo = await _echo(serving, body, request)
                for index in range(number * choices, (number + 1) * choices):
                    yield CompletionChoice(index=index, text=echo.text), nothing
        async for chunk in chunks:
            described = None
            if body.logprobs is not None and chunk.logprobs:
                described = completion_logprobs(chunk.logprobs, offsets[chunk.index], body.logprobs)
            piece = CompletionChoice(
                index=chunk.index,
                text=chunk.text,
                logprobs=described,
                finish_reason=chunk.finish_reason,
            )
            yield piece, chunk.usage or nothing


@asynccontextmanager
async def _accepted(
    serving: ServedModel, requests: Sequence[GenerationRequest], record: RequestRecord, choices: int
) -> AsyncGenerator[AsyncIterator[GenerationChunk], None]:
    """Submit several requests; give their chunks as they come, the choices numbered through.

    It begins when the engine has accepted all of them: one that is refused ends the whole before
    anything is said.
    """
    arrived: asyncio.Queue[GenerationChunk | Exception | None] = asyncio.Queue()

    async def read(number: int, request: GenerationRequest, accepted: asyncio.Future[None]) -> None:
        accept = partial(accepted.set_result, None)
        try:
            async with aclosing(serving.chunks(request, record, accept)) as chunks:
                async for chunk in chunks:
                    arrived.put_nowait(replace(chunk, index=number * choices + chunk.index))
            arrived.put_nowait(None)
        except Exception as error:
            if accepted.done():
                arrived.put_nowait(error)
            else:
                accepted.set_exception(error)

    async def merged() -> AsyncIterator[GenerationChunk]:
        left = len(requests)
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item

    acceptances: list[asyncio.Future[None]] = [
        asyncio.get_running_loop().create_future() for _ in requests
    ]
    tasks = [
        asyncio.create_task(read(number, request, accepted))
        for number, (request, accepted) in enumerate(zip(requests, acceptances, strict=True))
    ]
    try:
        await asyncio.gather(*acceptances)
        yield merged()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
