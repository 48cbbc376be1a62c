"""An OpenAI-compatible server as a backend: other people's models through `BaseEngine`."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import openai

from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.wire import (
    ChunkConverter,
    api_url,
    choose_model,
    completion_arguments,
    connection_lost_error,
    translate_api_error,
)
from llmctl.engine.stream import GenerationStream
from llmctl.errors import ConfigError, EngineStoppedError, LlmctlError, UnsupportedError
from llmctl.types import (
    ApiEndpoint,
    EngineInfo,
    EngineState,
    GenerationRequest,
    Message,
    ModelSpec,
    Progress,
    ProgressCallback,
    ignore_progress,
)

T = TypeVar("T")

CONNECT_S = 10.0
SILENCE_S = 600.0
"""How long a server may be silent: a long prompt takes a CPU minutes."""
_WATCH_S = 0.05
"""How soon a cancelled request is dropped."""


class OpenAIClient(BaseEngine):
    """One server, one of its models, and the thread with the connections.

    A server tells no tokens, so nothing here tokenises, scores or embeds.
    """

    def __init__(self, spec: ModelSpec, endpoint: ApiEndpoint | None = None) -> None:
        super().__init__(spec)
        if endpoint is None:
            raise ConfigError("the openai backend needs the URL of a server", hint="--base-url URL")
        self._endpoint = endpoint
        self.url = api_url(endpoint.base_url)
        self._info: EngineInfo | None = None
        self._streams: set[GenerationStream] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.models: tuple[str, ...] = ()
        """What the server lists."""

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        """Find out whether the server answers, and its model.

        Raises:
            EngineStoppedError: nobody answers.
            AuthenticationError: the key is missing or wrong.
            ModelNotFoundError: as `choose_model`.
        """
        progress(Progress(f"asking {self.url} for its models"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="llmctl-openai-client", daemon=True
        )
        self._thread.start()
        try:
            self._client = self._wait(self._connected())
            model, context = self._wait(self._chosen())
        except BaseException:
            self.close()
            raise
        self._info = EngineInfo(
            model_id=model,
            backend="openai",
            device=self.url,
            dtype="",
            quant="none",
            context_length=context,
            parameter_count=0,
            weight_bytes=0,
            has_chat_template=True,
            template_fingerprint=None,
        )

    async def _connected(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._endpoint.api_key or "none",
            timeout=openai.Timeout(SILENCE_S, connect=CONNECT_S),
            max_retries=0,  # whoever talks sees what happens, and asks again
        )

    async def _chosen(self) -> tuple[str, int]:
        """Return the model's name, and its context or 0."""
        named = self._endpoint.model
        try:
            listed = {model.id: model async for model in self._client.models.list()}
        except (openai.APIConnectionError, openai.AuthenticationError) as error:
            raise translate_api_error(error, self.url) from error
        except Exception as error:
            # Some servers list no models but answer for the one that is named.
            if named is None:
                raise translate_api_error(error, self.url) from error
            return named, 0
        self.models = tuple(listed)
        try:
            model = choose_model(named, self.models, self.url)
        except LlmctlError:
            if named is None or not await self._answers_for(named):
                raise
            return named, 0
        # vLLM's name, and that of `llmctl serve`; others say nothing.
        context = getattr(listed.get(model), "max_model_len", None)
        return model, context if isinstance(context, int) else 0

    async def _answers_for(self, name: str) -> bool:
        """Whether the server knows a model that it does not list."""
        try:
            return bool((await self._client.models.retrieve(name)).id)
        except Exception:
            return False

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, request: GenerationRequest) -> GenerationStream:
        fields = completion_arguments(request, self.info().model_id, self.url)
        stream = GenerationStream(request.request_id)
        stream.on_end(self._forget)
        with self._lock:
            if self._loop is None:
                raise EngineStoppedError("the connection is closed")
            self._streams.add(stream)
            asyncio.run_coroutine_threadsafe(self._watched(fields, stream), self._loop)
        return stream

    def _forget(self, stream: GenerationStream) -> None:
        with self._lock:
            self._streams.discard(stream)

    async def _watched(self, fields: dict[str, Any], stream: GenerationStream) -> None:
        """Answer until the reply ends or nobody wants it any more."""
        answer = asyncio.ensure_future(self._answer(fields, stream))
        while not answer.done() and not stream.cancelled:
            await asyncio.wait({answer}, timeout=_WATCH_S)
        answer.cancel()
        with suppress(asyncio.CancelledError):
            await answer
        stream.finish()

    async def _answer(self, fields: dict[str, Any], stream: GenerationStream) -> None:
        reply, begun = ChunkConverter(), False
        try:
            async with await self._client.chat.completions.create(**fields) as chunks:
                begun = True
                async for chunk in chunks:
                    for made in reply.feed(chunk):
                        stream.put(made)
            for made in reply.end(self.url):
                stream.put(made)
        except LlmctlError as error:
            stream.fail(error)
        except Exception as error:
            lost = begun and isinstance(error, openai.APIConnectionError)
            ours = connection_lost_error(self.url) if lost else translate_api_error(error, self.url)
            ours.__cause__ = error
            stream.fail(ours)

    def count_tokens(self, text: str | Sequence[Message]) -> int:  # noqa: ARG002
        raise UnsupportedError("a server does not count tokens beforehand")

    def tokenize(self, text: str | Sequence[int], *, add_special_tokens: bool = True) -> list[int]:  # noqa: ARG002
        raise UnsupportedError("a server does not tell its tokens")

    def detokenize(self, ids: Sequence[int]) -> str:  # noqa: ARG002
        raise UnsupportedError("a server does not tell its tokens")

    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineStoppedError(
                "the server has not been asked yet, or the connection is closed"
            )
        return self._info

    @property
    def adapters(self) -> tuple[str, ...]:
        """Those that `llmctl serve` has beside the model, as `model:name`."""
        begin = f"{self.info().model_id}:"
        return tuple(name.removeprefix(begin) for name in self.models if name.startswith(begin))

    def state(self) -> EngineState:
        self.info()
        return EngineState(
            True, 0.0, running=self.in_flight, waiting=0, max_rows=self.in_flight + 1
        )

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def close(self) -> None:
        with self._lock:
            loop, self._loop, self._info = self._loop, None, None
            open_streams = list(self._streams)
        if loop is None:
            return
        for stream in open_streams:
            stream.fail(EngineStoppedError("the connection was closed before the reply ended"))
            stream.cancel()
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._ended(), loop).result(timeout=1)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            loop.close()

    async def _ended(self) -> None:
        """End what still runs in the loop, and the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if (client := getattr(self, "_client", None)) is not None:
            await client.close()
