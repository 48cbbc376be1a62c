"""How does a server sit an exam? Replies always; likelihoods if a probe shows that it has them."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from llmctl.engine.loglikelihood import GroupScore, TextScore
from llmctl.errors import (
    ConfigError,
    ContextLengthError,
    EngineStoppedError,
    LlmctlError,
    RequestError,
)
from llmctl.evaluation.backend import ServerModel
from llmctl.evaluation.logprob_support import check_logprob_support
from llmctl.evaluation.model_adapter import Generation
from llmctl.types import EvalSample

T = TypeVar("T")

_AT_ONCE: Final = 16
"""Requests in flight."""
_TIMEOUT_S: Final = 600.0
_SHOWN: Final = 200
"""Characters of an answer that cannot be read."""


def resolve_server_model(base_url: str, model: str | None, api_key: str) -> ServerModel:
    """Name a server, and its model if it has only one.

    Raises:
        ConfigError: it does not answer, or has several models and none was named.
    """
    from llmctl.engine.openai.wire import api_error_message, api_url, base_models

    url = api_url(base_url)
    place = ServerModel(url, model or "", api_key)
    if model is not None:
        return place
    try:
        names = [found.id for found in _client(place).models.list().data]
    except Exception as error:
        raise ConfigError(
            f"{url} does not answer: {api_error_message(error)}",
            hint="is the server up, and is the key right?",
        ) from error
    if not names:
        raise ConfigError(f"{url} serves no model")
    own = base_models(names)
    if len(own) > 1:
        raise ConfigError(f"{url} serves {len(own)} models", hint=f"--model {' or '.join(own[:5])}")
    return ServerModel(url, own[0], api_key)


def _client(place: ServerModel) -> Any:
    from openai import OpenAI

    return OpenAI(
        base_url=place.base_url,
        api_key=place.api_key or "none",
        timeout=_TIMEOUT_S,
        max_retries=2,
    )


class EndpointAdapter:
    """Puts a server behind the `ModelAdapter` interface."""

    def __init__(self, place: ServerModel) -> None:
        self._place = place
        self._client = _client(place)

    def check_likelihoods(self) -> None:
        """Find out whether the server tells the log-likelihoods of a prompt.

        Raises:
            ConfigError: it does not, or what it tells cannot be.
        """
        check_logprob_support(lambda text: self._echo([text])[0][0][1:], self._place.base_url)

    def score(
        self, questions: Sequence[EvalSample], *, whole: bool
    ) -> Iterator[GroupScore | LlmctlError]:
        return self._each(questions, lambda question: self._score(question, whole=whole))

    def _score(self, question: EvalSample, *, whole: bool) -> GroupScore:
        context = question.context
        echoed = self._echo([context + end for end in question.continuations])
        scores, tokens = [], 0
        for values, offsets in echoed:
            first = 1
            if not whole:
                if len(offsets) != len(values):
                    raise RequestError("it answers without text_offset")
                # A token over the border counts to the continuation.
                ends = (*offsets[1:], math.inf)
                first = max(1, next(i for i, end in enumerate(ends) if end > len(context)))
            counted = [value for value in values[first:] if value is not None]
            scores.append(TextScore(sum(counted), len(values) if whole else len(counted)))
            tokens += len(values)
        return GroupScore(tuple(scores), tokens, tokens)

    def _echo(self, prompts: list[str]) -> list[tuple[list[float | None], list[int]]]:
        """Return the log-likelihood and the place of every token of each prompt."""

        def read(answer: Any) -> list[tuple[list[float | None], list[int]]]:
            told = []
            for choice in sorted(answer.choices, key=lambda one: one.index):
                found = choice.logprobs
                if found is None or not found.token_logprobs or len(found.token_logprobs) < 2:
                    raise RequestError("it answers without logprobs")
                values = [None if v is None else float(v) for v in found.token_logprobs]
                told.append((values, [int(place) for place in found.text_offset or ()]))
            if len(told) != len(prompts):
                raise RequestError(f"{len(told)} answers to {len(prompts)} prompts")
            return told

        return self._asked(
            lambda: self._client.completions.with_raw_response.create(
                model=self._place.model,
                prompt=prompts,
                max_tokens=0,
                echo=True,
                logprobs=0,
                temperature=0,
            ),
            read,
        )

    def write(
        self, questions: Sequence[EvalSample], max_new_tokens: int
    ) -> Iterator[Generation | LlmctlError]:
        return self._each(questions, lambda question: self._reply(question, max_new_tokens))

    def _reply(self, question: EvalSample, max_new_tokens: int) -> Generation:
        turns = [{"role": m.role, "content": m.content} for m in question.messages]
        return self._asked(
            lambda: self._client.chat.completions.with_raw_response.create(
                model=self._place.model,
                messages=turns,
                max_tokens=max_new_tokens,
                temperature=0,
            ),
            _read_reply,
        )

    def _asked(self, call: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """Ask, and read the answer; say what went wrong in our own words.

        Args:
            call: returns the client's raw response.
            read: what is in it; may trip over what should be there.

        Raises:
            EngineStoppedError: nobody answers.
            ContextLengthError, RequestError: the server refuses this question, or its answer cannot
                be read.
        """
        from openai import APIConnectionError, APIStatusError, OpenAIError

        try:
            answer = call()
        except APIConnectionError as error:
            raise EngineStoppedError(f"{self._place.base_url} does not answer: {error}") from error
        except APIStatusError as error:
            if error.code == "context_length_exceeded":
                raise ContextLengthError(error.message) from error
            raise RequestError(f"{error.status_code}: {error.message}") from error
        except OpenAIError as error:
            raise RequestError(str(error)) from error
        try:
            return read(answer.parse())
        except (AttributeError, TypeError, LookupError, ValueError) as error:
            text = answer.http_response.text[:_SHOWN]
            raise RequestError(f"its answer is no completion: {text!r}") from error

    def _each(
        self, questions: Sequence[EvalSample], ask: Callable[[EvalSample], T]
    ) -> Iterator[T | LlmctlError]:
        """Ask several at a time; yield in order."""
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            waiting: list[Future[T]] = [pool.submit(ask, question) for question in questions]
            for future in waiting:
                try:
                    yield future.result()
                except EngineStoppedError:
                    raise
                except LlmctlError as error:
                    yield error
        finally:
            # Whoever leaves early does not wait for answers that nobody wants.
            pool.shutdown(wait=False, cancel_futures=True)


def _read_reply(answer: Any) -> Generation:
    """Read a chat completion, of the client's type."""
    choice, usage = answer.choices[0], answer.usage
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    # What a server leaves out is not known to be anything.
    whole = sum(getattr(usage, f"{part}_tokens", None) or 0 for part in ("prompt", "completion"))
    # JSON can hold halves of a character, which no file can.
    text = (choice.message.content or "").encode(errors="replace").decode()
    return Generation(text, choice.finish_reason == "length", whole - cached, whole)
