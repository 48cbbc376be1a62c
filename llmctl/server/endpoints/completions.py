"""`/v1/completions`, `/tokenize` and `/detokenize`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from llmctl.engine.base import SupportsScore, SupportsTokenize, require
from llmctl.server.async_bridge import cancel_on_disconnect
from llmctl.server.convert.base import ResponseMetadata, includes_usage
from llmctl.server.convert.completions import (
    EchoedPrompt,
    TextOffsets,
    add_usage,
    completion,
    completion_choice,
    completion_generation_requests,
    completion_logprobs,
)
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from llmctl.server.served_model import ServedModel
from llmctl.server.sse import DONE, STREAM_RESPONSES, EventStream, format_event
from llmctl.types import (
    Choice,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ScoreRequest,
    Usage,
)

_NO_USAGE = Usage(0, 0)


def add_completion_routes(router: APIRouter, served: ServedModel) -> None:
    """Add the routes of raw text."""
    engine = served.engine

    @router.post("/v1/completions", response_model=Completion, responses=STREAM_RESPONSES)
    async def create_completion(body: CompletionRequest, request: Request) -> Completion | Response:
        record: RequestRecord = request.state.record
        record.model, record.stream = body.model, body.stream is True
        generations = completion_generation_requests(body, served.resolve_adapter(body.model))
        served.check_prompt_count(len(generations))
        metadata = ResponseMetadata(f"cmpl-{generations[0].request_id}", body.model)
        run = _CompletionRun(served, body, generations, record)
        if body.stream:
            return EventStream(run.events(metadata), record, ping_s=served.config.ping_s)
        return await cancel_on_disconnect(run.response(metadata), request.receive)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Return the token ids of a text."""
        if body.model is not None:
            served.resolve_adapter(body.model)
        ids = await asyncio.to_thread(
            require(engine, SupportsTokenize).tokenize,
            body.prompt,
            add_special_tokens=body.add_special_tokens,
        )
        return TokenizeResponse(
            tokens=ids, count=len(ids), max_model_len=engine.info().context_length
        )

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """Return the text of token ids."""
        if body.model is not None:
            served.resolve_adapter(body.model)
        detokenize = require(engine, SupportsTokenize).detokenize
        return DetokenizeResponse(prompt=await asyncio.to_thread(detokenize, body.tokens))


class _CompletionRun:
    """Generation for all prompts of one request, concurrently."""

    def __init__(
        self,
        served: ServedModel,
        body: CompletionRequest,
        generations: Sequence[GenerationRequest],
        record: RequestRecord,
    ) -> None:
        self._served = served
        self._body = body
        self._generations = generations
        self._record = record
        self._choices_per_prompt = body.n or 1

    async def response(self, metadata: ResponseMetadata) -> Completion:
        """Return the complete response to all prompts."""
        tasks = [asyncio.create_task(self._complete(g)) for g in self._generations]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        choices: list[CompletionChoice] = []
        usage = _NO_USAGE
        for echo, result in results:
            usage = add_usage(usage, result.usage)
            for choice in result.choices:
                index = len(choices)
                choices.append(completion_choice(index, choice, echo, self._body.logprobs))
        self._record.usage = usage
        return completion(metadata, choices, usage)

    async def events(self, metadata: ResponseMetadata) -> AsyncGenerator[bytes, None]:
        """Yield the response to all prompts as one stream of `text_completion` events."""
        include_usage = includes_usage(self._body.stream_options)
        exclude = None if include_usage else {"usage"}

        def event(*choices: CompletionChoice, usage: Usage | None = None) -> bytes:
            chunk = completion(metadata, choices, usage)
            return format_event(chunk.model_dump_json(exclude=exclude))

        total = _NO_USAGE
        async with aclosing(self._choice_deltas()) as deltas:
            async for choice, usage in deltas:
                total = add_usage(total, usage)
                yield event(choice)
        self._record.usage = total
        if include_usage:
            yield event(usage=total)
        yield DONE

    async def _complete(
        self, generation: GenerationRequest
    ) -> tuple[EchoedPrompt, GenerationResult]:
        echo = await self._echo(generation) if self._body.echo else EchoedPrompt("")
        if self._body.max_tokens == 0:
            tokenizer = require(self._served.engine, SupportsTokenize)
            ids = await asyncio.to_thread(tokenizer.tokenize, _prompt(generation))
            empty = (Choice("", "length"),) * self._choices_per_prompt
            return echo, GenerationResult(empty, Usage(len(ids), 0))
        return echo, await self._served.generate(generation, self._record)

    async def _echo(self, generation: GenerationRequest) -> EchoedPrompt:
        """Return the prompt's text, and its log-probabilities if they are requested."""
        engine, prompt, logprobs = self._served.engine, _prompt(generation), self._body.logprobs
        tokenizer = require(engine, SupportsTokenize)
        ids = tuple(await asyncio.to_thread(tokenizer.tokenize, prompt))
        text = prompt
        if not isinstance(text, str):
            text = await asyncio.to_thread(tokenizer.detokenize, ids)
        if logprobs is None:
            return EchoedPrompt(text)
        first = await asyncio.to_thread(tokenizer.detokenize, ids[:1])
        if len(ids) < 2:
            return EchoedPrompt(text, first)
        scoring = ScoreRequest(ids[:1], (ids[1:],), adapter=generation.adapter, logprobs=logprobs)
        scorer = require(engine, SupportsScore, param="logprobs")
        submit = partial(scorer.submit_scores, [scoring])
        ((score,),) = await self._served.await_result(submit)
        return EchoedPrompt(text, first, score.tokens)

    async def _choice_deltas(self) -> AsyncGenerator[tuple[CompletionChoice, Usage], None]:
        """Yield the new part of a choice, and the usage that is known with it."""
        per_prompt, top_logprobs = self._choices_per_prompt, self._body.logprobs
        if self._body.max_tokens == 0:
            results = [await self._complete(generation) for generation in self._generations]
            for number, (echo, result) in enumerate(results):
                for index, choice in enumerate(result.choices):
                    usage = _NO_USAGE if index else result.usage
                    yield completion_choice(number * per_prompt + index, choice, echo, None), usage
            return
        offsets = [TextOffsets() for _ in range(len(self._generations) * per_prompt)]
        async with self._accepted_chunks() as chunks:
            if self._body.echo:
                for number, generation in enumerate(self._generations):
                    echo = await self._echo(generation)
                    for index in range(number * per_prompt, (number + 1) * per_prompt):
                        yield CompletionChoice(index=index, text=echo.text), _NO_USAGE
            async for chunk in chunks:
                logprobs = None
                if top_logprobs is not None and chunk.logprobs:
                    offset = offsets[chunk.index]
                    logprobs = completion_logprobs(chunk.logprobs, offset, top_logprobs)
                delta = CompletionChoice(
                    index=chunk.index,
                    text=chunk.text,
                    logprobs=logprobs,
                    finish_reason=chunk.finish_reason,
                )
                yield delta, chunk.usage or _NO_USAGE

    @asynccontextmanager
    async def _accepted_chunks(self) -> AsyncGenerator[AsyncIterator[GenerationChunk], None]:
        """Submit all requests and yield their merged chunks, with choices numbered throughout.

        The context is entered once the engine has accepted all requests: a refused one fails the
        response before its status is sent.
        """
        queue: asyncio.Queue[GenerationChunk | Exception | None] = asyncio.Queue()

        async def read(
            number: int, generation: GenerationRequest, accepted: asyncio.Future[None]
        ) -> None:
            on_accepted = partial(accepted.set_result, None)
            stream = self._served.stream(generation, self._record, on_accepted)
            try:
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        index = number * self._choices_per_prompt + chunk.index
                        queue.put_nowait(replace(chunk, index=index))
                queue.put_nowait(None)
            except Exception as error:
                if accepted.done():
                    queue.put_nowait(error)
                else:
                    accepted.set_exception(error)

        async def merged() -> AsyncIterator[GenerationChunk]:
            running = len(self._generations)
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item

        loop = asyncio.get_running_loop()
        acceptances: list[asyncio.Future[None]] = [loop.create_future() for _ in self._generations]
        tasks = [
            asyncio.create_task(read(number, generation, accepted))
            for number, (generation, accepted) in enumerate(
                zip(self._generations, acceptances, strict=True)
            )
        ]
        try:
            await asyncio.gather(*acceptances)
            yield merged()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _prompt(generation: GenerationRequest) -> str | tuple[int, ...]:
    assert generation.prompt is not None
    return generation.prompt
