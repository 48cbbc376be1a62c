"""The backend for batches of requests to an OpenAI-compatible server.

Evaluation sends many independent requests: each needs its whole response, a retry if the server is
busy, and an error that does not end the batch. Log-likelihoods come from `/v1/completions` with
`echo` and `logprobs`.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import openai

from llmctl.engine.loglikelihood import GroupScore, TextScore
from llmctl.engine.openai.client import OpenAIClient
from llmctl.engine.openai.wire import api_error_message
from llmctl.engine.stream import GenerationStream
from llmctl.errors import (
    ContextLengthError,
    EngineStoppedError,
    LlmctlError,
    RequestError,
    UnsupportedError,
)
from llmctl.types import ApiEndpoint, FinishReason, GenerationChunk, GenerationRequest, Usage

T = TypeVar("T")

_MAX_CONCURRENT = 16
_MAX_RETRIES = 2
_SHOWN_CHARACTERS = 200
"""Length of the part of an invalid response that an error message quotes."""


@dataclass(frozen=True, slots=True)
class EchoedText:
    """A text's tokens, as a completion with `echo` returns them."""

    logprobs: tuple[float | None, ...]
    """Natural log-likelihood of each token; the first has none."""
    offsets: tuple[int, ...]
    """Position of each token in the text; empty if the server does not return them."""

    def full_text_score(self) -> TextScore:
        """Return the score of all tokens except the first, and the number of all tokens."""
        values = [value for value in self.logprobs[1:] if value is not None]
        return TextScore(sum(values), len(self.logprobs))

    def continuation_score(self, start: int) -> TextScore:
        """Return the score of the tokens that end after `start`, a position in the text.

        A token with characters on both sides of the border is part of the continuation.
        """
        if len(self.offsets) != len(self.logprobs):
            raise RequestError("the server's completions have no text_offset")
        ends = (*self.offsets[1:], math.inf)
        first = max(1, next(index for index, end in enumerate(ends) if end > start))
        values = [value for value in self.logprobs[first:] if value is not None]
        return TextScore(sum(values), len(values))


class OpenAIBatchClient(OpenAIClient):
    """One model of a server, for batches: at most 16 requests run at once, the others wait."""

    def __init__(self, endpoint: ApiEndpoint) -> None:
        super().__init__(endpoint)
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    @property
    def endpoint(self) -> ApiEndpoint:
        """The server's URL, its model and key."""
        return ApiEndpoint(self.url, self.info().model_id, self._endpoint.api_key)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Submit a request; its stream receives one chunk per choice.

        Raises:
            UnsupportedError: the request has tools.
            EngineStoppedError: the connection is closed.
        """
        if request.tools:
            raise UnsupportedError("batches do not support tools", param="tools")
        return super().submit(request)

    async def _receive(
        self, client: openai.AsyncOpenAI, arguments: dict[str, Any], stream: GenerationStream
    ) -> None:
        """Receive the whole response. A response that is not a completion fails its request."""
        for name in ("stream", "stream_options"):
            del arguments[name]
        try:
            async with self._slots:
                retrying = client.with_options(max_retries=_MAX_RETRIES)
                response = await retrying.chat.completions.with_raw_response.create(**arguments)
            for chunk in _parsed(response, _completion_chunks):
                stream.put(chunk)
        except Exception as error:
            stream.fail(self._translated(error, started=False))

    def _translated(self, error: Exception, *, started: bool) -> LlmctlError:
        """Return the error of one request; only a server that does not answer ends the batch."""
        if isinstance(error, openai.APIStatusError):
            message = f"{error.status_code}: {api_error_message(error)}"
            too_long = error.code == ContextLengthError.code
            translated = ContextLengthError(message) if too_long else RequestError(message)
            translated.__cause__ = error
            return translated
        return super()._translated(error, started=started)

    def score_full_texts(
        self, groups: Sequence[Sequence[str]]
    ) -> Iterator[GroupScore | LlmctlError]:
        """Yield the scores of `llmctl.engine.loglikelihood.score_full_texts`."""

        async def score(texts: Sequence[str]) -> GroupScore:
            echoed = await self._echo(texts)
            return _group_score(echoed, [text.full_text_score() for text in echoed])

        return self._in_order([partial(score, texts) for texts in groups])

    def score_continuations(
        self, groups: Sequence[tuple[str, Sequence[str]]]
    ) -> Iterator[GroupScore | LlmctlError]:
        """Yield the scores of `llmctl.engine.loglikelihood.score_continuations`."""

        async def score(context: str, continuations: Sequence[str]) -> GroupScore:
            echoed = await self._echo([context + text for text in continuations])
            return _group_score(echoed, [one.continuation_score(len(context)) for one in echoed])

        return self._in_order([partial(score, *group) for group in groups])

    def echo(self, text: str) -> EchoedText:
        """Return the tokens of one text. Blocks.

        Raises:
            EngineStoppedError: the server does not answer.
            RequestError: it refuses the request, or returns no log-likelihoods.
        """

        async def echo() -> EchoedText:
            return (await self._echo([text]))[0]

        return self._wait(echo())

    async def _echo(self, texts: Sequence[str]) -> list[EchoedText]:
        if self._client is None:
            raise EngineStoppedError("the connection is closed")
        try:
            async with self._slots:
                client = self._client.with_options(max_retries=_MAX_RETRIES)
                response = await client.completions.with_raw_response.create(
                    model=self.info().model_id,
                    prompt=list(texts),
                    max_tokens=0,
                    echo=True,
                    logprobs=0,
                    temperature=0,
                )
        except openai.OpenAIError as error:
            raise self._translated(error, started=False) from error
        echoed = _parsed(response, _echoed_texts)
        if len(echoed) != len(texts):
            raise RequestError(f"the server returned {len(echoed)} completions of {len(texts)}")
        return echoed

    def _in_order(
        self, scores: Sequence[Callable[[], Coroutine[Any, Any, GroupScore]]]
    ) -> Iterator[GroupScore | LlmctlError]:
        """Run all, and yield the results in order.

        Raises:
            EngineStoppedError: the server does not answer.
        """
        loop = self._loop
        if loop is None:
            raise EngineStoppedError("the connection is closed")
        pending = [asyncio.run_coroutine_threadsafe(score(), loop) for score in scores]
        try:
            for future in pending:
                try:
                    yield future.result()
                except EngineStoppedError:
                    raise
                except LlmctlError as error:
                    yield error
        finally:
            for future in pending:
                future.cancel()


def _group_score(echoed: Sequence[EchoedText], scores: Sequence[TextScore]) -> GroupScore:
    tokens = sum(len(text.logprobs) for text in echoed)
    return GroupScore(tuple(scores), tokens, tokens)


def _parsed(response: Any, read: Callable[[Any], T]) -> T:
    """Return what `read` finds in a response of the client.

    Raises:
        RequestError: the response is not a completion.
    """
    try:
        return read(response.parse())
    except (AttributeError, TypeError, LookupError, ValueError) as error:
        text = response.http_response.text[:_SHOWN_CHARACTERS]
        raise RequestError(f"the response is not a completion: {text!r}") from error


def _completion_chunks(completion: Any) -> list[GenerationChunk]:
    usage = completion.usage
    details = getattr(usage, "prompt_tokens_details", None)
    counts = Usage(
        getattr(usage, "prompt_tokens", None) or 0,
        getattr(usage, "completion_tokens", None) or 0,
        cached_tokens=getattr(details, "cached_tokens", None) or 0,
    )
    chunks: list[GenerationChunk] = []
    for choice in completion.choices:
        # JSON can hold half of a surrogate pair, which cannot be written to a file.
        text = (choice.message.content or "").encode(errors="replace").decode()
        reason: FinishReason = "length" if choice.finish_reason == "length" else "stop"
        is_last = len(chunks) == len(completion.choices) - 1
        usage_of_all = counts if is_last else None
        chunks.append(GenerationChunk(text, len(chunks), finish_reason=reason, usage=usage_of_all))
    if not chunks:
        raise ValueError("no choices")
    return chunks


def _echoed_texts(completion: Any) -> list[EchoedText]:
    echoed = []
    for choice in sorted(completion.choices, key=lambda one: one.index):
        content = choice.logprobs
        if content is None or not content.token_logprobs or len(content.token_logprobs) < 2:
            raise RequestError("the server's completions have no logprobs")
        logprobs = (None if value is None else float(value) for value in content.token_logprobs)
        offsets = (int(offset) for offset in content.text_offset or ())
        echoed.append(EchoedText(tuple(logprobs), tuple(offsets)))
    return echoed
