"""Conversion of requests, responses and errors to and from the API of an OpenAI-compatible server.

The fields are those of OpenAI's API reference (`/v1/chat/completions`). Fields that it lacks have
the names that vLLM and `llmctl serve` share.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai

from llmctl.did_you_mean import did_you_mean
from llmctl.engine.chat.formats.format_parser import FormatParser, reasoning_parser
from llmctl.engine.chat.formats.reasoning_families import THINK
from llmctl.engine.chat.response_delta import ResponseDelta
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

_STANDARD = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "n")
_EXTENSIONS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "ignore_eos": "ignore_eos",
    "min_new_tokens": "min_tokens",
}
_REASONING = ("reasoning_content", "reasoning")
_FINISH_REASONS: Mapping[str, FinishReason] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


def api_url(base_url: str) -> str:
    """Return the URL of the API: `/v1` is added to an address that has no path.

    Raises:
        ConfigError: it is not an http or https URL.
    """
    try:
        parts = urlsplit(base_url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(
            f"{base_url!r} is not the URL of a server",
            hint="use a URL such as http://127.0.0.1:8000/v1",
        )
    return base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def completion_arguments(request: GenerationRequest, model: str, url: str) -> dict[str, Any]:
    """Return the arguments of the client's `chat.completions.create` for a streamed response.

    Raises:
        UnsupportedError: the request is a raw prompt, or asks for log-probabilities.
    """
    if not request.messages:
        raise UnsupportedError("the openai backend takes messages, not a raw prompt")
    sampling = request.sampling
    if sampling.logprobs is not None:
        raise UnsupportedError(
            "the openai backend does not return log-probabilities", param="logprobs"
        )
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
    fields |= {name: v for name in _STANDARD if (v := getattr(sampling, name)) is not None}
    extra |= {
        field: v
        for name, field in _EXTENSIONS.items()
        if (v := getattr(sampling, name)) is not None
    }
    if sampling.max_new_tokens is not None:
        # OpenAI's own server rejects `max_tokens` for newer models; most others know only that.
        is_openai = urlsplit(url).hostname == "api.openai.com"
        fields["max_completion_tokens" if is_openai else "max_tokens"] = sampling.max_new_tokens
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
            schema = {"name": "reply", "schema": json.loads(grammar.source)}
            schema["strict"] = not grammar.open_objects
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        case "json_object":
            fields["response_format"] = {"type": "json_object"}
        case "regex":
            extra["regex"] = grammar.source
        case "choice":
            extra["choice"] = list(grammar.choices)


def _message(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's form, which has no field for reasoning."""
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
    """Converts the chunks of a server to `GenerationChunk`s, and checks that the response ended.

    Reasoning that the server leaves in the content as a `<think>` block is moved to `reasoning`.
    """

    def __init__(self) -> None:
        self._finish_reasons: dict[int, FinishReason] = {}
        self._calls: dict[tuple[int, int], ToolCall] = {}
        self._parsers: dict[int, FormatParser] = {}
        self._usage: Usage | None = None
        self._chunks = 0

    def feed(self, chunk: Any) -> Iterator[GenerationChunk]:
        """Take the next chunk, of the client's type; yield its content."""
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            cached = None if details is None else details.cached_tokens
            counts = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            self._usage = Usage(*counts, cached_tokens=cached or 0)
        for choice in chunk.choices:
            delta = choice.delta
            content = delta.content or ""
            # OpenAI has no field for it; other servers use one of these two.
            separate = next(filter(None, (getattr(delta, name, None) for name in _REASONING)), "")
            for part in delta.tool_calls or ():
                self._add_call((choice.index, part.index), part)
            if choice.finish_reason:
                reason = _FINISH_REASONS.get(choice.finish_reason, "stop")
                self._finish_reasons[choice.index] = reason
            if content or separate:
                self._chunks += 1
                if choice.index not in self._parsers:
                    self._parsers[choice.index] = reasoning_parser(THINK)
                text, reasoning = _joined(self._parsers[choice.index].feed(content))
                if text or separate or reasoning:
                    yield GenerationChunk(text, choice.index, reasoning=separate + reasoning)

    def _add_call(self, key: tuple[int, int], part: Any) -> None:
        call = self._calls.get(key, ToolCall("", ""))
        function = part.function
        name = (function.name if function else None) or ""
        arguments = (function.arguments if function else None) or ""
        self._calls[key] = ToolCall(
            call.name + name, call.arguments + arguments, part.id or call.id
        )

    def flush(self) -> Iterator[GenerationChunk]:
        """Yield text that is held back, of a response that ends now."""
        for index, parser in self._parsers.items():
            text, reasoning = _joined(parser.end())
            if text or reasoning:
                yield GenerationChunk(text, index, reasoning=reasoning)

    def end(self, url: str) -> Iterator[GenerationChunk]:
        """Yield the chunks that end the choices.

        Raises:
            EngineStoppedError: the server disconnected before the response was complete.
        """
        if not self._finish_reasons:
            raise connection_lost_error(url)
        yield from self.flush()
        # Of a server that returns no usage: a chunk is about a token.
        usage = self._usage or Usage(0, self._chunks)
        *others, last = sorted(self._finish_reasons)
        for index in (*others, last):
            yield GenerationChunk(
                "",
                index,
                finish_reason=self._finish_reasons[index],
                usage=usage if index == last else None,
                tool_calls=tuple(
                    call for (owner, _), call in sorted(self._calls.items()) if owner == index
                ),
            )


def _joined(deltas: Sequence[ResponseDelta]) -> tuple[str, str]:
    """Return answer and reasoning."""
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas)


def connection_lost_error(url: str) -> EngineStoppedError:
    """Return the error for a server that disconnected in the middle of a response."""
    return EngineStoppedError(
        f"the server at {url} disconnected before the reply was complete",
        hint="check that it still runs; the part received so far is kept",
    )


def translate_api_error(error: Exception, url: str, *, started: bool = False) -> LlmctlError:
    """Return the `LlmctlError` for an error of the OpenAI client.

    Args:
        error: raised by the client.
        url: of the server.
        started: whether a part of the response was received before.
    """
    if started and isinstance(error, openai.APIConnectionError):
        return connection_lost_error(url)
    if isinstance(error, openai.APITimeoutError):
        return EngineStoppedError(f"the server at {url} did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return EngineStoppedError(
            f"no server answers at {url}",
            hint="start one, for example with `llmctl serve`, or correct the URL",
        )
    if not isinstance(error, openai.APIError):
        # Before version 3 the client did not wrap the errors of its HTTP library.
        return connection_lost_error(url)
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    message = f"{url}: {api_error_message(error)}"
    if status in (401, 403):
        return AuthenticationError(message, hint="give the server's key with --api-key")
    if status == 404:
        return ModelNotFoundError(message, hint="name one of the server's models")
    if status == 429:
        return EngineBusyError(message, hint="try again in a moment")
    if error.code == ContextLengthError.code:
        return ContextLengthError(message)
    if status in (400, 422):
        return RequestError(message, param=error.param)
    return EngineStoppedError(message)


def api_error_message(error: Exception) -> str:
    """Return the server's error message, or else the client's."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error or type(error).__name__)


def choose_model(named: str | None, listed: Sequence[str], url: str) -> str:
    """Return the server's model to use: `named`, or the first listed model that is not an adapter.

    Raises:
        ModelNotFoundError: the server lists no model, or not that one.
    """
    if named is None:
        own = base_models(listed)
        if not own:
            raise ModelNotFoundError(f"{url} lists no models", hint="name one with --model")
        return own[0]
    # Ollama lists `name:tag` and accepts `name`.
    if named in listed or any(name.startswith(f"{named}:") for name in listed):
        return named
    close = did_you_mean(named, listed)
    raise ModelNotFoundError(
        f"{url} has no model {named!r}" + (f"; did you mean {close}?" if close else ""),
        hint=f"it has: {', '.join(listed[:8]) or 'no models'}",
    )


def base_models(listed: Sequence[str]) -> list[str]:
    """Return the listed models without the adapters that `llmctl serve` lists as `model:name`."""
    return [name for name in listed if ":" not in name] or list(listed)
