"""What is served here, under which names, and how much of it at once?"""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from typing import TypeVar

from llmctl.config import ServeConfig
from llmctl.engine.base import BaseEngine
from llmctl.engine.stream import ResultAccumulator
from llmctl.errors import EngineBusyError, ModelNotFoundError, RequestError
from llmctl.server.async_bridge import await_result, ignore_accepted, stream_chunks
from llmctl.server.request_record import RequestRecord
from llmctl.server.schemas.chat_responses import Model
from llmctl.types import GenerationChunk, GenerationRequest, GenerationResult

T = TypeVar("T")


class ServedModel:
    """One engine behind a server. Used in the event loop alone."""

    def __init__(self, engine: BaseEngine, options: ServeConfig) -> None:
        self.engine = engine
        self.options = options
        self._started = int(time.time())
        self._in_flight = 0

    def models(self) -> dict[str, str | None]:
        """Return every name a request may use, and the adapter it stands for."""
        bases = (self.engine.info().model_id, *self.options.served_names)
        names: dict[str, str | None] = dict.fromkeys(bases)
        for adapter in self.engine.adapters:
            names |= {f"{base}:{adapter}": adapter for base in bases}
        return names

    def adapter_of(self, name: str) -> str | None:
        """Return the adapter that a model's name stands for, `None` for the model itself.

        Raises:
            ModelNotFoundError: nothing of that name is served here.
        """
        served = self.models()
        if name not in served:
            raise ModelNotFoundError(
                f"The model `{name}` does not exist or you do not have access to it.",
                hint=f"served here: {', '.join(served)}",
            )
        return served[name]

    def describe(self, name: str) -> Model:
        """Describe a served model, as `adapter_folder` finds it."""
        self.adapter_of(name)
        context = self.engine.info().context_length
        return Model(id=name, created=self._started, max_model_len=context)

    @property
    def _limit(self) -> int:
        return self.engine.state().max_rows + self.options.max_queue

    def check_count(self, prompts: int) -> None:
        """Refuse what could never be admitted, however often it is tried.

        Raises:
            RequestError: so many prompts cannot be in flight.
        """
        if prompts > self._limit:
            raise RequestError(
                f"{prompts} prompts are more than the {self._limit} that this server answers or "
                "lets wait",
                hint=f"send {self._limit} at a time, or raise --max-queue",
                param="prompt",
            )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request among those in flight.

        Raises:
            EngineBusyError: as many wait as may.
        """
        if self._in_flight >= self._limit:
            raise EngineBusyError(
                f"{self._in_flight} requests are being answered or wait already; try again soon"
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def read(self, submit: Callable[[], Future[T]]) -> T:
        """Have texts scored or embedded; see `admitted` and `await_result`."""
        with self.admitted():
            return await await_result(submit, self.options.request_timeout_s)

    async def chunks(
        self,
        request: GenerationRequest,
        record: RequestRecord,
        accepted: Callable[[], None] = ignore_accepted,
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Answer a request, noting in its record how that went; see `stream_chunks`.

        Raises:
            EngineBusyError: as many wait as may.
        """
        with self.admitted():
            pieces: list[str] | None = None
            if self.options.log_content:
                record.prompt, pieces = _content(request), []
            chunks = stream_chunks(self.engine, request, self.options.request_timeout_s, accepted)
            try:
                async with aclosing(chunks):
                    async for chunk in chunks:
                        record.piece()
                        record.usage = chunk.usage
                        if pieces is not None:
                            pieces.append(chunk.text)
                        yield chunk
            finally:
                if pieces is not None:
                    record.answer = "".join(pieces)

    async def reply(self, request: GenerationRequest, record: RequestRecord) -> GenerationResult:
        """Answer a request in one piece; see `chunks`."""
        folded = ResultAccumulator()
        async with aclosing(self.chunks(request, record)) as chunks:
            async for chunk in chunks:
                folded.add(chunk)
        return folded.result()


def _content(request: GenerationRequest) -> object:
    if request.prompt is not None:
        return request.prompt
    return [{"role": m.role, "content": m.content} for m in request.messages]
