"""How does the wire map to our own types, and back? Pure functions; not given is `None`."""

import json
from dataclasses import dataclass
from typing import TypeVar

from llmctl.errors import RequestError
from llmctl.server.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChoiceLogprobs,
    CompletionUsage,
    JSONObjectFormat,
    JSONSchemaFormat,
    PromptMessage,
    PromptTokensDetails,
    ReplyMessage,
    TokenLogprobEntry,
    ToolMessage,
    TopLogprob,
)
from llmctl.types import (
    GenerationRequest,
    GenerationResult,
    Grammar,
    Message,
    SamplingParams,
    TokenLogprob,
    TokenProb,
    Usage,
)

T = TypeVar("T")

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for "very unlikely"; JSON has no negative infinity."""


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every part of one reply has in common."""

    id: str
    model: str
    created: int
    """Unix time in seconds."""


def generation_request(body: ChatCompletionRequest) -> GenerationRequest:
    return GenerationRequest(
        messages=tuple(_message(message) for message in body.messages),
        sampling=_sampling(body),
    )


def _message(message: PromptMessage | AssistantMessage | ToolMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        # Nothing between the parts: a separator would be text that nobody wrote.
        content = "".join(part.text for part in content)
    return Message(message.role, "" if content is None else content)


def _sampling(body: ChatCompletionRequest) -> SamplingParams:
    max_new_tokens = body.max_completion_tokens
    if max_new_tokens is None:
        max_new_tokens = body.max_tokens
    logprobs = None
    if body.logprobs:
        logprobs = 0 if body.top_logprobs is None else body.top_logprobs
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
        stop=(body.stop,) if isinstance(body.stop, str) else _maybe_tuple(body.stop),
        stop_token_ids=_maybe_tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        n=body.n,
        logprobs=logprobs,
        min_new_tokens=body.min_tokens,
        grammar=_grammar(body),
    )


def _grammar(body: ChatCompletionRequest) -> Grammar | None:
    grammars: dict[str, Grammar] = {}
    match body.response_format:
        case JSONObjectFormat():
            grammars["response_format"] = Grammar("json_object")
        case JSONSchemaFormat(json_schema=wanted):
            source = json.dumps(wanted.schema_, ensure_ascii=False)
            grammars["response_format"] = Grammar("json_schema", source)
    if body.regex is not None:
        grammars["regex"] = Grammar("regex", body.regex)
    if body.choice is not None:
        grammars["choice"] = Grammar("choice", choices=tuple(body.choice))
    if len(grammars) > 1:
        first, second, *_ = grammars
        raise RequestError(f"'{second}' cannot be combined with '{first}'", param=second)
    return next(iter(grammars.values()), None)


def _maybe_tuple(values: list[T] | None) -> tuple[T, ...] | None:
    return None if values is None else tuple(values)


def chat_completion(head: ReplyHead, result: GenerationResult, *, logprobs: bool) -> ChatCompletion:
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[
            ChatChoice(
                index=index,
                message=ReplyMessage(content=choice.text),
                logprobs=choice_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=choice.finish_reason,
            )
            for index, choice in enumerate(result.choices)
        ],
        usage=usage(result.usage),
    )


def usage(counted: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.total_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=counted.cached_tokens),
    )


def choice_logprobs(tokens: tuple[TokenLogprob, ...]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            TokenLogprobEntry(
                **_top_logprob(token.chosen).model_dump(),
                top_logprobs=[_top_logprob(likely) for likely in token.top],
            )
            for token in tokens
        ]
    )


def _top_logprob(token: TokenProb) -> TopLogprob:
    # NaN is not above anything either.
    logprob = token.logprob if token.logprob > LEAST_LOGPROB else LEAST_LOGPROB
    return TopLogprob(token=token.token, logprob=logprob, bytes=list(token.token_bytes))
