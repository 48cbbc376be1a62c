"""The backend for a model behind an OpenAI-compatible server."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import openai

from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.wire import (
    ChunkConverter,
    api_url,
    choose_model,
    completion_arguments,
    translate_api_error,
)
from llmctl.engine.stream import GenerationStream
from llmctl.errors import EngineStoppedError, LlmctlError
from llmctl.types import (
    ApiEndpoint,
    EngineInfo,
    EngineState,
    GenerationRequest,
    Progress,
    ProgressCallback,
    ignore_progress,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0
"""Longest pause between two pieces of a response: a long prompt takes a CPU minutes."""
_CANCEL_POLL_S = 0.05


class FoundModel(NamedTuple):
    """The model of a server that an endpoint names."""

    name: str
    context_length: int
    """Tokens of prompt and reply together; 0 if the server does not report it."""
    listed: tuple[str, ...]
    """Names of all models that the server lists."""


def create_client(endpoint: ApiEndpoint) -> openai.AsyncOpenAI:
    """Return a client that sends each request once.

    Raises:
        ConfigError: the URL is invalid.
    """
    return openai.AsyncOpenAI(
        base_url=api_url(endpoint.base_url),
        api_key=endpoint.api_key or "none",
        timeout=openai.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        max_retries=0,  # the caller sees each failure and decides whether to retry
    )


async def find_model(client: openai.AsyncOpenAI, named: str | None, url: str) -> FoundModel:
    """Return the model of a server: `named`, or by default the first that is not an adapter.

    Args:
        client: connected to the server.
        named: the model's name on the server, or `None`.
        url: of the server, for messages.

    Raises:
        EngineStoppedError: the server does not answer.
        AuthenticationError: the key is missing or wrong.
        ModelNotFoundError: as `choose_model`.
    """
    try:
        listed = {model.id: model async for model in client.models.list()}
    except (openai.APIConnectionError, openai.AuthenticationError) as error:
        raise translate_api_error(error, url) from error
    except Exception as error:
        # Some servers list no models but accept the one that is named.
        if named is None:
            raise translate_api_error(error, url) from error
        return FoundModel(named, 0, ())
    try:
        name = choose_model(named, tuple(listed), url)
    except LlmctlError:
        if named is None or not await _has_model(client, named):
            raise
        return FoundModel(named, 0, tuple(listed))
    # The field's name in vLLM and in `llmctl serve`; other servers do not send it.
    context = getattr(listed.get(name), "max_model_len", None)
    return FoundModel(name, context if isinstance(context, int) else 0, tuple(listed))


class OpenAIClient(BaseEngine):
    """One model of a server, and the thread that runs the connections.

    The API has no endpoints to tokenise or score, so this backend only generates.
    """

    def __init__(self, endpoint: ApiEndpoint) -> None:
        self._endpoint = endpoint
        self.url = api_url(endpoint.base_url)
        self._info: EngineInfo | None = None
        self._streams: set[GenerationStream] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: openai.AsyncOpenAI | None = None
        self.models: tuple[str, ...] = ()
        """Names of the models that the server lists."""

    def load(self, progress: ProgressCallback = ignore_progress) -> None:
        """Connect to the server and choose its model.

        Raises:
            EngineStoppedError: the server does not answer.
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
            self._client = self._wait(self._create_client())
            model, context_length = self._wait(self._choose_model(self._client))
        except BaseException:
            self.close()
            raise
        self._info = EngineInfo(
            model_id=model,
            backend="openai",
            device=self.url,
            dtype="",
            quant="none",
            context_length=context_length,
            parameter_count=0,
            weight_bytes=0,
            has_chat_template=True,
            template_fingerprint=None,
        )

    async def _create_client(self) -> openai.AsyncOpenAI:
        return create_client(self._endpoint)

    async def _choose_model(self, client: openai.AsyncOpenAI) -> tuple[str, int]:
        """Return the model's name, and its context length or 0."""
        model = await find_model(client, self._endpoint.model, self.url)
        self.models = model.listed
        return model.name, model.context_length

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, request: GenerationRequest) -> GenerationStream:
        arguments = completion_arguments(request, self.info().model_id, self.url)
        stream = GenerationStream(request.request_id)
        stream.on_end(self._forget)
        with self._lock:
            if self._loop is None or self._client is None:
                raise EngineStoppedError("the connection is closed")
            self._streams.add(stream)
            run = self._run(self._client, arguments, stream)
            asyncio.run_coroutine_threadsafe(run, self._loop)
        return stream

    def _forget(self, stream: GenerationStream) -> None:
        with self._lock:
            self._streams.discard(stream)

    async def _run(
        self, client: openai.AsyncOpenAI, arguments: dict[str, Any], stream: GenerationStream
    ) -> None:
        """Receive a response until it ends or its stream is cancelled."""
        receiving = asyncio.ensure_future(self._receive(client, arguments, stream))
        while not receiving.done() and not stream.cancelled:
            await asyncio.wait({receiving}, timeout=_CANCEL_POLL_S)
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving
        stream.finish()

    async def _receive(
        self, client: openai.AsyncOpenAI, arguments: dict[str, Any], stream: GenerationStream
    ) -> None:
        converter, started = ChunkConverter(), False
        try:
            async with await client.chat.completions.create(**arguments) as chunks:
                started = True
                async for chunk in chunks:
                    for converted in converter.feed(chunk):
                        stream.put(converted)
            for converted in converter.end(self.url):
                stream.put(converted)
        except Exception as error:
            for converted in converter.flush():
                stream.put(converted)
            stream.fail(self._translated(error, started=started))

    def _translated(self, error: Exception, *, started: bool) -> LlmctlError:
        if isinstance(error, LlmctlError):
            return error
        translated = translate_api_error(error, self.url, started=started)
        translated.__cause__ = error
        return translated

    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineStoppedError("not connected to the server")
        return self._info

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that `llmctl serve` lists beside the model, as `model:name`."""
        prefix = f"{self.info().model_id}:"
        return tuple(name.removeprefix(prefix) for name in self.models if name.startswith(prefix))

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
            asyncio.run_coroutine_threadsafe(self._end_tasks(), loop).result(timeout=1)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            loop.close()

    async def _end_tasks(self) -> None:
        """Cancel the tasks that still run in the loop, and close the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._client is not None:
            await self._client.close()


async def _has_model(client: openai.AsyncOpenAI, name: str) -> bool:
    """Whether the server has a model that it does not list."""
    try:
        return bool((await client.models.retrieve(name)).id)
    except Exception:
        return False
