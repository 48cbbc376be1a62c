"""Targets of a benchmark: an OpenAI-compatible server, or an engine in this process."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from llmctl.config.bench import BenchConfig
from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.client import create_client, find_model
from llmctl.engine.openai.wire import api_url, completion_arguments, translate_api_error
from llmctl.engine.stream import StreamItem
from llmctl.errors import EngineStoppedError, LlmctlError, RequestError
from llmctl.types import ApiEndpoint, GenerationChunk, GenerationRequest, Message, SamplingParams


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
    """A model on a server; arrival times are taken where the client yields the chunks.

    Raises:
        ConfigError: the URL is invalid.
    """

    def __init__(self, endpoint: ApiEndpoint) -> None:
        self.url = api_url(endpoint.base_url)
        self._endpoint = endpoint
        self._client = create_client(endpoint)
        self._model: str | None = None

    @property
    def model(self) -> str:
        """Name of the model on the server, known after `open`."""
        assert self._model is not None
        return self._model

    async def open(self) -> None:
        """Check that the server answers, and choose its model.

        Raises:
            LlmctlError: as `find_model`.
        """
        self._model = (await find_model(self._client, self._endpoint.model, self.url)).name

    async def reply(self, messages: Sequence[Message], config: BenchConfig) -> TimedReply:
        """Return the complete reply; see `BenchTarget.reply`."""
        arrivals: list[float] = []
        try:
            return await self._stream(messages, config, arrivals)
        except LlmctlError:
            raise
        # Before version 3 the client did not wrap the errors of its HTTP library.
        except Exception as error:
            translated = translate_api_error(error, self.url, started=bool(arrivals))
            if type(translated) is RequestError and config.ignore_eos:
                translated.hint = "for a server without ignore_eos add --no-ignore-eos"
            raise translated from error

    async def _stream(
        self, messages: Sequence[Message], config: BenchConfig, arrivals: list[float]
    ) -> TimedReply:
        arguments = completion_arguments(_request(messages, config), self.model, self.url)
        texts: list[str] = []
        usage = None
        sent = perf_counter()
        stream = await self._client.chat.completions.create(**arguments)
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

    async def close(self) -> None:
        """Close the connections."""
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

        request = _request(messages, config)
        sent = perf_counter()
        with self._engine.submit(request) as stream:
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


def _request(messages: Sequence[Message], config: BenchConfig) -> GenerationRequest:
    sampling = SamplingParams(
        max_new_tokens=config.max_tokens,
        temperature=config.temperature,
        ignore_eos=config.ignore_eos or None,
    )
    return GenerationRequest(tuple(messages), sampling=sampling)


def _text(delta: Any) -> str:
    """Return the text of a chunk; servers have different fields for the reasoning."""
    fields = ("content", "reasoning_content", "reasoning")
    return "".join(filter(None, (getattr(delta, name, None) for name in fields)))
