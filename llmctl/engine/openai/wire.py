"""How do a request, a reply and an error of ours look on the wire of an OpenAI-compatible server?

The fields are those of OpenAI's API reference (`/v1/chat/completions`); what it lacks goes under
the names that vLLM and `llmctl serve` share.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai

from llmctl.errors import (
    AuthenticationError,
    ConfigError,
    ContextLengthError,
    EngineBusyError,
    EngineStoppedError,
    LlmctlError,
    ModelNotFoundError,
    RequestError,
    UnsupportedError,
)
from llmctl.types import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Grammar,
    Message,
    SamplingParams,
    Tool,
    ToolCall,
    Usage,
)

_SHARED = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "n")
_EXTENSIONS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "ignore_eos": "ignore_eos",
    "min_new_tokens": "min_tokens",
}
_REASONS: Mapping[str, FinishReason] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


def api_url(base_url: str) -> str:
    """Return the URL of the API: `/v1` is added to an address that has no path.

    Raises:
        ConfigError: it is no http or https URL.
    """
    try:
        parts = urlsplit(base_url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(
            f"{base_url!r} is no URL of a server", hint="such as http://127.0.0.1:8000/v1"
        )
    return base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def completion_arguments(request: GenerationRequest, model: str, url: str) -> dict[str, Any]:
    """Return the arguments of the client's `chat.completions.create` for a streamed reply.

    Raises:
        UnsupportedError: the request has what no server could be asked for this way.
    """
    if not request.messages:
        raise UnsupportedError("this backend answers conversations, not raw prompts")
    sampling = request.sampling
    if sampling.logprobs is not None:
        raise UnsupportedError("this backend passes no log-probabilities on", param="logprobs")
    fields: dict[str, Any] = {
        "model": model if request.adapter is None else f"{model}:{request.adapter}",
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    extra: dict[str, Any] = {}
    _add_sampling(sampling, fields, extra, url)
    if request.tools:
        fields["tools"] = [_tool(tool) for tool in request.tools]
        fields["parallel_tool_calls"] = request.parallel_tool_calls
        if len(request.required_tools) == 1:
            chosen = {"name": request.required_tools[0]}
            fields["tool_choice"] = {"type": "function", "function": chosen}
        elif request.required_tools:
            fields["tool_choice"] = "required"
    if request.continue_final_message:
        extra |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.template_kwargs:
        extra["chat_template_kwargs"] = dict(request.template_kwargs)
    return fields | ({"extra_body": extra} if extra else {})


def _add_sampling(
    sampling: SamplingParams, fields: dict[str, Any], extra: dict[str, Any], url: str
) -> None:
    fields |= {name: v for name in _SHARED if (v := getattr(sampling, name)) is not None}
    extra |= {
        theirs: v
        for ours, theirs in _EXTENSIONS.items()
        if (v := getattr(sampling, ours)) is not None
    }
    if sampling.max_new_tokens is not None:
        # OpenAI's own server refuses the old name for newer models; most others know only that.
        newer = urlsplit(url).hostname == "api.openai.com"
        fields["max_completion_tokens" if newer else "max_tokens"] = sampling.max_new_tokens
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        extra["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.grammar is not None:
        _add_grammar(sampling.grammar, fields, extra)


def _add_grammar(grammar: Grammar, fields: dict[str, Any], extra: dict[str, Any]) -> None:
    match grammar.kind:
        case "json_schema":
            schema = {"name": "reply", "schema": json.loads(grammar.source), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        case "json_object":
            fields["response_format"] = {"type": "json_object"}
        case "regex":
            extra["regex"] = grammar.source
        case "choice":
            extra["choice"] = list(grammar.choices)


def _message(message: Message) -> dict[str, Any]:
    """Write a message. Its reasoning stays here: OpenAI's API has no place for it."""
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        written["name"] = message.name
    return written


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        function["parameters"] = dict(tool.parameters)
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


class ChunkConverter:
    """Makes our chunks of a server's, and knows at the end whether the reply was whole."""

    def __init__(self) -> None:
        self._reasons: dict[int, FinishReason] = {}
        self._calls: dict[tuple[int, int], ToolCall] = {}
        self._usage: Usage | None = None
        self._pieces = 0

    def feed(self, chunk: Any) -> Iterator[GenerationChunk]:
        """Take the next chunk, of the client's type; yield what it says."""
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            cached = None if details is None else details.cached_tokens
            counts = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            self._usage = Usage(*counts, cached_tokens=cached or 0)
        for choice in chunk.choices:
            delta = choice.delta
            text = delta.content or ""
            # No field of OpenAI's; servers have settled on these two.
            reasoning = next(
                filter(None, map(_field(delta), ("reasoning_content", "reasoning"))), ""
            )
            for part in delta.tool_calls or ():
                self._add_call((choice.index, part.index), part)
            if choice.finish_reason:
                self._reasons[choice.index] = _REASONS.get(choice.finish_reason, "stop")
            if text or reasoning:
                self._pieces += 1
                yield GenerationChunk(text, choice.index, reasoning=reasoning)

    def _add_call(self, key: tuple[int, int], part: Any) -> None:
        call = self._calls.get(key, ToolCall("", ""))
        function = part.function
        name = (function.name if function else None) or ""
        arguments = (function.arguments if function else None) or ""
        self._calls[key] = ToolCall(
            call.name + name, call.arguments + arguments, part.id or call.id
        )

    def end(self, url: str) -> Iterator[GenerationChunk]:
        """Yield the chunks that end the choices.

        Raises:
            EngineStoppedError: the server went away before the reply was complete.
        """
        if not self._reasons:
            raise connection_lost_error(url)
        # Of a server that counts nothing: a piece is about a token.
        usage = self._usage or Usage(0, self._pieces)
        *others, last = sorted(self._reasons)
        for index in (*others, last):
            yield GenerationChunk(
                "",
                index,
                finish_reason=self._reasons[index],
                usage=usage if index == last else None,
                tool_calls=tuple(
                    call for (owner, _), call in sorted(self._calls.items()) if owner == index
                ),
            )


def _field(delta: Any) -> Any:
    return lambda name: getattr(delta, name, None)


def connection_lost_error(url: str) -> EngineStoppedError:
    """Return the error of a server that left in the middle of a reply."""
    return EngineStoppedError(
        f"the server at {url} went away before the reply was complete",
        hint="is it still running? What came is kept",
    )


def translate_api_error(error: Exception, url: str) -> LlmctlError:
    """Return what an error of the client means, as one of ours."""
    told = api_error_message(error)
    if isinstance(error, openai.APITimeoutError):
        return EngineStoppedError(f"the server at {url} has said nothing for too long")
    if isinstance(error, openai.APIConnectionError):
        return EngineStoppedError(
            f"no server answers at {url}",
            hint="start one, for example with `llmctl serve`, or correct the URL",
        )
    if not isinstance(error, openai.APIError):
        # Before version 3 the client let its transport's own errors through.
        return connection_lost_error(url)
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    said = f"{url}: {told}"
    if status in (401, 403):
        return AuthenticationError(said, hint="give the server's key with --api-key")
    if status == 404:
        return ModelNotFoundError(said, hint="name one of the server's models")
    if status == 429:
        return EngineBusyError(said, hint="try again in a moment")
    if error.code == ContextLengthError.code:
        return ContextLengthError(said)
    if status in (400, 422):
        return RequestError(said, param=error.param)
    return EngineStoppedError(said)


def api_error_message(error: Exception) -> str:
    """Return what the server said, or else what the client says."""
    body = getattr(error, "body", None)
    told = body.get("message") if isinstance(body, dict) else None
    return str(told or error or type(error).__name__)


def choose_model(named: str | None, listed: Sequence[str], url: str) -> str:
    """Return which of a server's models is meant: the first that it lists, if none was named.

    Raises:
        ModelNotFoundError: it has none, or not that one.
    """
    if named is None:
        own = base_models(listed)
        if not own:
            raise ModelNotFoundError(f"{url} lists no model", hint="name one with --model")
        return own[0]
    # Ollama lists `name:tag`, and answers to `name`.
    if named in listed or any(name.startswith(f"{named}:") for name in listed):
        return named
    near = difflib.get_close_matches(named, listed, n=1)
    raise ModelNotFoundError(
        f"{url} has no model {named!r}" + (f"; did you mean {near[0]}?" if near else ""),
        hint=f"it has {', '.join(listed[:8]) or 'none at all'}",
    )


def base_models(listed: Sequence[str]) -> list[str]:
    """Leave out the adapters that `llmctl serve` lists beside the model, as `model:name`."""
    return [name for name in listed if ":" not in name] or list(listed)
