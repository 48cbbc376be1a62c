"""The model that a server serves: its names, the limit on concurrent requests, generation."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import TypeVar

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine, SupportsTokenize, require
from llmctl.engine.chat.context_window import first_fitting, prompt_budget
from llmctl.engine.stream import ResultAccumulator
from llmctl.errors import EngineBusyError, ModelNotFoundError, RequestError
from llmctl.server.async_bridge import await_result, ignore_accepted, stream_chunks
from llmctl.server.request_log import RequestRecord
from llmctl.types import GenerationChunk, GenerationRequest, GenerationResult, Message

T = TypeVar("T")

DROPPED_MESSAGES_HEADER = "x-llmctl-dropped-messages"
"""Response header with the number of messages that `--overflow truncate-oldest` dropped."""
TOOLS_HEADER = "x-llmctl-tools"
"""Response header that is `in-words` if the prompt describes the tools in words, because the
model's chat template does not have them."""


class ServedModel:
    """One engine behind a server. Used in the event loop only."""

    def __init__(self, engine: BaseEngine, config: ServeConfig) -> None:
        self.engine = engine
        self.config = config
        self.created = int(time.time())
        """Unix time in seconds since which the model is served."""
        self._in_flight = 0

    def names(self) -> dict[str, str | None]:
        """Return every model name a request may use, with its adapter (`None`: the base model)."""
        bases = (self.engine.info().model_id, *self.config.served_names)
        names: dict[str, str | None] = dict.fromkeys(bases)
        for adapter in self.engine.adapters:
            names |= {f"{base}:{adapter}": adapter for base in bases}
        return names

    def resolve_adapter(self, name: str) -> str | None:
        """Return the adapter that a model name stands for, `None` for the base model.

        Raises:
            ModelNotFoundError: no model of that name is served.
        """
        served = self.names()
        if name not in served:
            raise ModelNotFoundError(
                f"The model `{name}` does not exist or you do not have access to it.",
                hint=f"served here: {', '.join(served)}",
            )
        return served[name]

    @property
    def _max_in_flight(self) -> int:
        return self.engine.state().max_rows + self.config.max_queue

    def check_prompt_count(self, prompts: int) -> None:
        """Refuse a request with more prompts than can ever be in flight.

        Raises:
            RequestError: the limit is lower than `prompts`.
        """
        if prompts > self._max_in_flight:
            raise RequestError(
                f"{prompts} prompts are more than the {self._max_in_flight} that this server "
                "answers or queues at the same time",
                hint=f"send {self._max_in_flight} at a time, or raise --max-queue",
                param="prompt",
            )

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Count a request as in flight for as long as the context lasts.

        Raises:
            EngineBusyError: the queue is full.
        """
        if self._in_flight >= self._max_in_flight:
            raise EngineBusyError(
                f"{self._in_flight} requests are already running or queued; try again soon"
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def fit_context(
        self, request: GenerationRequest
    ) -> tuple[GenerationRequest, dict[str, str]]:
        """Drop the oldest turns of a conversation that is longer than the context.

        Only with `--overflow truncate-oldest`, and only as many turns as necessary. Leading
        instructions and everything from the last question on are kept; the engine refuses a
        conversation that is too long even then.

        Returns:
            The request, and response headers: the number of dropped messages, and whether the
            prompt describes the tools in words.
        """
        formats = self.engine.info().response_formats
        headers: dict[str, str] = {}
        if request.tools and formats is not None and formats.tools_in_words:
            headers[TOOLS_HEADER] = "in-words"
        starts = _possible_starts(request.messages)
        if self.config.overflow != "truncate-oldest" or not starts:
            return request, headers
        first = starts[0]
        budget = prompt_budget(self.engine.info().context_length, request.sampling.max_new_tokens)

        def without(start: int) -> GenerationRequest:
            return replace(request, messages=request.messages[:first] + request.messages[start:])

        tokenizer = require(self.engine, SupportsTokenize)

        def count(start: int) -> int:
            return tokenizer.count_prompt(without(start))

        fitting = await asyncio.to_thread(first_fitting, starts, count, budget)
        start = starts[-1] if fitting is None else fitting
        if start == first:
            return request, headers
        return without(start), headers | {DROPPED_MESSAGES_HEADER: str(start - first)}

    async def await_result(self, submit: Callable[[], Future[T]]) -> T:
        """Return the result of scoring or embedding; see `async_bridge.await_result`.

        Raises:
            EngineBusyError: the queue is full.
        """
        with self.admission():
            return await await_result(submit, self.config.request_timeout_s)

    async def stream(
        self,
        request: GenerationRequest,
        record: RequestRecord,
        on_accepted: Callable[[], None] = ignore_accepted,
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Yield the chunks of a reply and fill the record; see `async_bridge.stream_chunks`.

        Raises:
            EngineBusyError: the queue is full.
        """
        with self.admission():
            answer: list[str] | None = None
            if self.config.log_content:
                record.prompt, answer = _prompt_content(request), []
            chunks = stream_chunks(self.engine, request, self.config.request_timeout_s, on_accepted)
            try:
                async with aclosing(chunks):
                    async for chunk in chunks:
                        record.record_chunk()
                        record.usage = chunk.usage
                        if answer is not None:
                            answer.append(chunk.text)
                        yield chunk
            finally:
                if answer is not None:
                    record.answer = "".join(answer)

    async def generate(self, request: GenerationRequest, record: RequestRecord) -> GenerationResult:
        """Return the complete reply; see `stream`."""
        accumulator = ResultAccumulator()
        async with aclosing(self.stream(request, record)) as chunks:
            async for chunk in chunks:
                accumulator.add(chunk)
        return accumulator.result()


def _prompt_content(request: GenerationRequest) -> object:
    if request.prompt is not None:
        return request.prompt
    return [{"role": m.role, "content": m.content} for m in request.messages]


def _possible_starts(messages: tuple[Message, ...]) -> list[int]:
    """Return the indices at which a truncated conversation can begin: its first turn, and every
    question after it."""
    instructions = ("system", "developer")
    first = next((i for i, m in enumerate(messages) if m.role not in instructions), None)
    if first is None:
        return []
    return [first, *(i for i, m in enumerate(messages) if i > first and m.role == "user")]
