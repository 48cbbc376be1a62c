"""How does the wire map to our own types, and back? Pure functions; not given is `None`."""

import json
from dataclasses import dataclass
from typing import TypeVar

from llmctl.errors import RequestError
from llmctl.server.schemas.chat import (
    AssistantMessage,
    ChatCompletionRequest,
    FunctionTool,
    JSONObjectFormat,
    JSONSchemaFormat,
    NamedTool,
    PromptMessage,
    ResponseFormat,
    SamplingFields,
    ToolMessage,
)
from llmctl.server.schemas.chat_responses import (
    ChatChoice,
    ChatCompletion,
    ChoiceLogprobs,
    CompletionUsage,
    PromptTokensDetails,
    ResponseMessage,
    TokenLogprobEntry,
    TopLogprob,
)
from llmctl.types import (
    Choice,
    GenerationRequest,
    GenerationResult,
    Grammar,
    Message,
    SamplingParams,
    TokenLogprob,
    TokenProb,
    Tool,
    ToolCall,
    Usage,
)

T = TypeVar("T")

MIN_LOGPROB = -9999.0
"""What OpenAI writes for "very unlikely"; JSON has no negative infinity."""


@dataclass(frozen=True, slots=True)
class ResponseMetadata:
    """What every part of one reply has in common."""

    id: str
    model: str
    created: int
    """Unix time in seconds."""


def generation_request(
    body: ChatCompletionRequest, adapter: str | None = None
) -> GenerationRequest:
    tools = () if body.tool_choice == "none" else tuple(map(_tool, body.tools or ()))
    if body.tools is None and body.tool_choice not in (None, "none"):
        raise RequestError(
            "'tool_choice' is only allowed when 'tools' are given", param="tool_choice"
        )
    match body.tool_choice:
        case NamedTool(function=function):
            forced: tuple[str, ...] = (function.name,)
        case "required":
            forced = tuple(tool.name for tool in tools)
        case _:
            forced = ()
    return GenerationRequest(
        messages=tuple(_message(message) for message in body.messages),
        tools=tools,
        required_tools=forced,
        # OpenAI calls a function that is named once.
        parallel_tool_calls=body.parallel_tool_calls is not False
        and not isinstance(body.tool_choice, NamedTool),
        continue_final_message=body.continue_final_message is True,
        template_kwargs=body.chat_template_kwargs or {},
        sampling=_sampling(body),
        adapter=adapter,
    )


def _tool(tool: FunctionTool) -> Tool:
    function = tool.function
    return Tool(
        function.name,
        function.description or "",
        function.parameters,
        strict=function.strict is True,
    )


def _message(message: PromptMessage | AssistantMessage | ToolMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        # Nothing between the parts: a separator would be text that nobody wrote.
        content = "".join(part.text for part in content)
    text = "" if content is None else content
    match message:
        case AssistantMessage():
            calls = tuple(
                ToolCall(call.function.name, call.function.arguments, call.id)
                for call in message.tool_calls or ()
            )
            return Message(
                "assistant",
                text,
                reasoning=message.reasoning_content,
                tool_calls=calls,
                name=message.name,
            )
        case ToolMessage():
            return Message("tool", text, tool_call_id=message.tool_call_id, name=message.name)
        case _:
            return Message(message.role, text, name=message.name)


def _sampling(body: ChatCompletionRequest) -> SamplingParams:
    max_new_tokens = body.max_completion_tokens
    if max_new_tokens is None:
        max_new_tokens = body.max_tokens
    logprobs = None
    if body.logprobs:
        logprobs = 0 if body.top_logprobs is None else body.top_logprobs
    return sampling_params(
        body,
        max_new_tokens=max_new_tokens,
        logprobs=logprobs,
        response_format=body.response_format,
    )


def sampling_params(
    body: SamplingFields,
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
    response_format: ResponseFormat | None = None,
) -> SamplingParams:
    """Gather how the tokens of a reply are chosen."""
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
        grammar=_grammar(body, response_format),
    )


def _grammar(body: SamplingFields, response_format: ResponseFormat | None) -> Grammar | None:
    grammars: dict[str, Grammar] = {}
    match response_format:
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


def chat_completion(
    head: ResponseMetadata, result: GenerationResult, *, logprobs: bool
) -> ChatCompletion:
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[
            ChatChoice(
                index=index,
                message=_reply_message(choice),
                logprobs=choice_logprobs(choice.logprobs) if logprobs else None,
                finish_reason=choice.finish_reason,
            )
            for index, choice in enumerate(result.choices)
        ],
        usage=usage(result.usage),
    )


def _reply_message(choice: Choice) -> ResponseMessage:
    message: ResponseMessage = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.tool_calls
        ]
    return message


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
    logprob = token.logprob if token.logprob > MIN_LOGPROB else MIN_LOGPROB
    return TopLogprob(token=token.token, logprob=logprob, bytes=list(token.token_bytes))
