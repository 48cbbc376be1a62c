"""Conversion of `/v1/completions`: requests, choices, and log-probabilities with text offsets."""

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

from llmctl.errors import RequestError
from llmctl.server.convert.base import (
    ResponseMetadata,
    completion_usage,
    finite_logprob,
    sampling_params,
)
from llmctl.server.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    split_prompts,
)
from llmctl.types import Choice, GenerationRequest, TokenLogprob, Usage

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default, which clients rely on: a raw prompt has no natural end."""


def completion_generation_requests(
    body: CompletionRequest, adapter: str | None
) -> list[GenerationRequest]:
    """Return the engine's request for each prompt.

    Raises:
        RequestError: the values of two fields contradict each other.
    """
    if body.best_of not in (None, 1, body.n):
        raise RequestError(
            f"best_of is {body.best_of}; this server returns all choices that it generates",
            param="best_of",
        )
    if body.max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens is 0 and echo is not set", param="max_tokens")
    if body.stream and body.echo and body.logprobs is not None:
        raise RequestError("'echo' with 'logprobs' cannot be streamed", param="echo")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
    sampling = sampling_params(body, max_new_tokens=max_tokens, logprobs=body.logprobs)
    return [
        GenerationRequest(prompt=prompt, sampling=sampling, adapter=adapter)
        for prompt in split_prompts(body.prompt)
    ]


def completion(
    metadata: ResponseMetadata, choices: Iterable[CompletionChoice], usage: Usage | None
) -> Completion:
    """Return a complete response, or one event of a streamed response."""
    return Completion(
        id=metadata.id,
        created=metadata.created,
        model=metadata.model,
        choices=list(choices),
        usage=None if usage is None else completion_usage(usage),
    )


def completion_choice(
    index: int, choice: Choice, echo: "EchoedPrompt", top_logprobs: int | None
) -> CompletionChoice:
    """Return a complete choice, with the prompt before it if it is echoed."""
    logprobs = None if top_logprobs is None else echo.logprobs(choice.logprobs, top_logprobs)
    return CompletionChoice(
        index=index,
        text=echo.text + choice.text,
        logprobs=logprobs,
        finish_reason=choice.finish_reason,
    )


def add_usage(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.cached_tokens + b.cached_tokens,
    )


class TextOffsets:
    """Returns where each of successive tokens begins, in characters.

    A token that continues a character begins where the character does.
    """

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token_bytes: bytes) -> int:
        """Return the offset of the next token."""
        offset = max(self._offset, 0)
        self._offset += len(self._decoder.decode(token_bytes))
        return offset


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt that is returned before its completion."""

    text: str
    first_token: str | None = None
    """Its first token, if log-probabilities are requested; it has none, for lack of context."""
    tokens: tuple[TokenLogprob, ...] = ()
    """The other tokens."""

    def logprobs(self, completion: Iterable[TokenLogprob], top_logprobs: int) -> CompletionLogprobs:
        """Return the log-probabilities of prompt and completion."""
        logprobs = _empty_logprobs(top_logprobs)
        offsets = TextOffsets(len(self.text))
        if self.first_token is not None:
            text = self.text.encode()
            # The bytes that the other tokens leave. A BOS has none of the text. A tokenizer that
            # adds a space before the first word has more bytes in its tokens than the text has.
            rest = len(text) - sum(len(token.chosen.token_bytes) for token in self.tokens)
            offsets = TextOffsets(min(rest, 0))
            logprobs.tokens.append(self.first_token)
            logprobs.text_offset.append(offsets.next(text[: max(rest, 0)]))
            logprobs.token_logprobs.append(None)
            if logprobs.top_logprobs is not None:
                logprobs.top_logprobs.append(None)
        return _append(logprobs, (*self.tokens, *completion), offsets)


def completion_logprobs(
    tokens: Iterable[TokenLogprob], offsets: TextOffsets, top_logprobs: int
) -> CompletionLogprobs:
    """Return the log-probabilities of the tokens of one chunk."""
    return _append(_empty_logprobs(top_logprobs), tokens, offsets)


def _empty_logprobs(top_logprobs: int) -> CompletionLogprobs:
    top: list[dict[str, float] | None] | None = [] if top_logprobs else None
    return CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=top, text_offset=[])


def _append(
    logprobs: CompletionLogprobs, tokens: Iterable[TokenLogprob], offsets: TextOffsets
) -> CompletionLogprobs:
    for token in tokens:
        chosen = token.chosen
        logprobs.tokens.append(chosen.token)
        logprobs.text_offset.append(offsets.next(chosen.token_bytes))
        logprobs.token_logprobs.append(finite_logprob(chosen.logprob))
        if logprobs.top_logprobs is not None:
            logprobs.top_logprobs.append(
                {top.token: finite_logprob(top.logprob) for top in token.top}
            )
    return logprobs
