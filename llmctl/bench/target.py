"""Targets of a benchmark: an OpenAI-compatible server, or an engine in this process."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import openai
from openai.types.chat import ChatCompletionMessageParam

from llmctl.bench.config import BenchConfig, BenchServer
from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.wire import api_error_message, api_url
from llmctl.engine.stream import StreamItem
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.types import GenerationChunk, GenerationRequest, Message, SamplingParams

TIMEOUT_S = 600.0
"""Seconds without data after which a request fails."""


@dataclass(frozen=True, slots=True)
class TimedReply:
    """Arrival times of one reply, in seconds of `perf_counter`, and its token counts."""

    sent_s: float
    arrivals_s: tuple[float, ...]
    """One per chunk with text; never empty."""
    ended_s: float
    """Arrival of the last token, which may have no text."""
    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.arrivals_s:
            raise LlmctlError("the reply has no text")

    @property
    def tokens(self) -> int:
        """The token count of the server, or else the number of chunks."""
        return len(self.arrivals_s) if self.completion_tokens is None else self.completion_tokens


class BenchTarget(Protocol):
    """Answers conversations and records when each part of a reply arrives."""

    async def reply(self, messages: Sequence[Message], config: BenchConfig) -> TimedReply:
        """Return the complete reply to a conversation.

        Raises:
            LlmctlError: the request failed, or the reply has no text.
        """


class ServerTarget:
    """A server, through the official client."""

    def __init__(self, endpoint: BenchServer) -> None:
        self._url = api_url(endpoint.base_url)
        self._model = endpoint.model
        self._client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=endpoint.api_key or "none",
            timeout=TIMEOUT_S,
            max_retries=0,  # a request that is sent twice would be timed twice
        )

    @property
    def model(self) -> str:
        """The server's name of the model. Known once the target is open."""
        assert self._model is not None
        return self._model

    async def open(self) -> None:
        """Find out whether the server answers at all, and its model. Raises `LlmctlError`."""
        try:
            listed = [model.id async for model in self._client.models.list()]
        except openai.APIConnectionError as error:
            raise LlmctlError(
                f"no server answers at {self._url}",
                hint="start one, for example with `llmctl serve`, or correct the URL",
            ) from error
        except openai.OpenAIError as error:
            # Some servers list no models but answer for the one that is named.
            if self._model is None or isinstance(error, openai.AuthenticationError):
                raise self._failure(error, ignore_eos=False) from error
            return
        if self._model is None:
            if not listed:
                raise LlmctlError(f"{self._url} lists no model", hint="name one with --model")
            self._model = listed[0]

    async def reply(self, messages: Sequence[Message], config: BenchConfig) -> TimedReply:
        try:
            return await self._stream(messages, config)
        except LlmctlError:
            raise
        # Before version 3 the client let its transport's own errors through.
        except Exception as error:
            raise self._failure(error, ignore_eos=config.ignore_eos) from error

    async def _stream(self, messages: Sequence[Message], config: BenchConfig) -> TimedReply:
        arrivals: list[float] = []
        texts: list[str] = []
        usage = None
        sent = perf_counter()
        stream = await self._client.chat.completions.create(
            model=self.model,
            messages=[_wire(message) for message in messages],
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True} if config.ignore_eos else None,
        )
        ended = sent
        async with stream:
            async for chunk in stream:
                now = perf_counter()
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    if text := _text(choice.delta):
                        arrivals.append(now)
                        texts.append(text)
                    if text or choice.finish_reason:
                        ended = now
        details = None if usage is None else usage.prompt_tokens_details
        return TimedReply(
            sent,
            tuple(arrivals),
            ended,
            "".join(texts),
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            cached_tokens=None if details is None else details.cached_tokens,
        )

    def _failure(self, error: Exception, *, ignore_eos: bool) -> LlmctlError:
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        hint = {401: "give the server's key with --api-key", 404: "name its model with --model"}
        if status in (400, 422) and ignore_eos:
            hint |= {status: "a server that does not know ignore_eos needs --no-ignore-eos"}
        return LlmctlError(
            f"{self._url}: {api_error_message(error)}", hint=hint.get(status or 0, "")
        )

    async def close(self) -> None:
        """Drop the connections."""
        await self._client.close()


class EngineTarget:
    """An engine in this process; arrival times are taken in the engine thread."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine

    async def reply(self, messages: Sequence[Message], config: BenchConfig) -> TimedReply:
        loop = asyncio.get_running_loop()
        finished = asyncio.Event()
        items: list[tuple[float, StreamItem]] = []

        def listen(item: StreamItem) -> None:
            items.append((perf_counter(), item))
            if not isinstance(item, GenerationChunk):
                # After Ctrl-C the loop may be closed before the engine stops.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(finished.set)

        sampling = SamplingParams(
            max_new_tokens=config.max_tokens,
            temperature=config.temperature,
            ignore_eos=config.ignore_eos,
        )
        sent = perf_counter()
        with self._engine.submit(GenerationRequest(tuple(messages), sampling=sampling)) as stream:
            stream.listen(listen)
            await finished.wait()
        return _timed_reply(sent, items)


def _timed_reply(sent: float, items: Sequence[tuple[float, StreamItem]]) -> TimedReply:
    for _, item in items:
        if isinstance(item, LlmctlError):
            raise item
    chunks = [(now, item) for now, item in items if isinstance(item, GenerationChunk)]
    usage = chunks[-1][1].usage if chunks else None
    if usage is None:
        raise EngineStoppedError("the engine stopped before the reply was complete")
    return TimedReply(
        sent,
        tuple(now for now, chunk in chunks if chunk.text),
        chunks[-1][0],
        "".join(chunk.text for _, chunk in chunks),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _wire(message: Message) -> ChatCompletionMessageParam:
    if message.role == "assistant":
        return {"role": "assistant", "content": message.content}
    return {"role": "user", "content": message.content}


def _text(delta: Any) -> str:
    """Return the text of a chunk; servers have different fields for the reasoning."""
    fields = ("content", "reasoning_content", "reasoning")
    return "".join(filter(None, (getattr(delta, name, None) for name in fields)))
