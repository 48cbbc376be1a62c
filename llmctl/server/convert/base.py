"""Conversion that several endpoints share: response metadata, sampling parameters, usage."""

import json
import time
from dataclasses import dataclass, field
from typing import TypeVar

from llmctl.errors import RequestError
from llmctl.server.schemas.base import (
    CompletionUsage,
    JSONObjectFormat,
    PromptTokensDetails,
    SamplingFields,
    StreamOptions,
)
from llmctl.server.schemas.chat import JSONSchemaFormat, ResponseFormat
from llmctl.types import Grammar, SamplingParams, Usage

T = TypeVar("T")

MIN_LOGPROB = -9999.0
"""OpenAI's value for a very unlikely token; JSON has no negative infinity."""


@dataclass(frozen=True, slots=True)
class ResponseMetadata:
    """Fields that every chunk of one response has in common."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""


def sampling_params(
    body: SamplingFields,
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
    response_format: ResponseFormat | None = None,
) -> SamplingParams:
    """Return the sampling parameters of a request.

    Raises:
        RequestError: it has more than one of `response_format`, `regex` and `choice`.
    """
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=(
            None
            if body.logit_bias is None
            else tuple((int(token), bias) for token, bias in body.logit_bias.items())
        ),
        stop=(body.stop,) if isinstance(body.stop, str) else _optional_tuple(body.stop),
        stop_token_ids=_optional_tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        n=body.n,
        logprobs=logprobs,
        min_new_tokens=body.min_tokens,
        grammar=_grammar(body, response_format),
    )


def _grammar(body: SamplingFields, response_format: ResponseFormat | None) -> Grammar | None:
    grammars: dict[str, Grammar] = {}
    match response_format:
        case JSONObjectFormat():
            grammars["response_format"] = Grammar("json_object")
        case JSONSchemaFormat(json_schema=json_schema):
            source = json.dumps(json_schema.schema_, ensure_ascii=False)
            grammars["response_format"] = Grammar(
                "json_schema", source, open_objects=json_schema.strict is False
            )
    if body.regex is not None:
        grammars["regex"] = Grammar("regex", body.regex)
    if body.choice is not None:
        grammars["choice"] = Grammar("choice", choices=tuple(body.choice))
    if len(grammars) > 1:
        first, second, *_ = grammars
        raise RequestError(f"'{second}' cannot be combined with '{first}'", param=second)
    return next(iter(grammars.values()), None)


def _optional_tuple(values: list[T] | None) -> tuple[T, ...] | None:
    return None if values is None else tuple(values)


def finite_logprob(logprob: float) -> float:
    """Return the value with -inf and NaN replaced by `MIN_LOGPROB`."""
    return logprob if logprob > MIN_LOGPROB else MIN_LOGPROB


def includes_usage(options: StreamOptions | None) -> bool:
    """Return whether a stream ends with an event that holds the usage."""
    return options is not None and options.include_usage is True


def completion_usage(usage: Usage) -> CompletionUsage:
    """Return the token counts in OpenAI's format."""
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )
