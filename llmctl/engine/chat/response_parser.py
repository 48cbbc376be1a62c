"""Parsing of generated text into answer, reasoning and tool calls.

Models mark these parts in different ways. Where a tokenizer has a response template, Transformers'
parser (`transformers.utils.chat_parsing`) follows it. Two conventions that many models share and
few declare, `<think>` and Hermes' `<tool_call>`, are recognised by the chat template.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmctl.engine.chat.marked_response import MarkedResponseParser
from llmctl.engine.chat.response_delta import (
    ReasoningTokens,
    ResponseDelta,
    ResponseParser,
    new_tool_call_id,
)
from llmctl.engine.chat.template import ChatTemplate, tool_definition
from llmctl.engine.chat.tool_choice import (
    RequiredToolCallParser,
    tool_call_schema,
    tool_messages_as_text,
    tools_as_text,
)
from llmctl.errors import UnsupportedError
from llmctl.types import GenerationRequest, Grammar, Message, ToolCall

_THINK, _END_THINK = "<think>", "</think>"
_CALL = "<tool_call>"


def declared_template(declared: Mapping[str, Any] | None, *, calls: bool) -> Any | None:
    """Return a tokenizer's `response_template` for a request, with or without tool calls."""
    if declared is None:
        return None
    spec: dict[str, Any] = copy.deepcopy(dict(declared))
    fields = spec.get("fields", {})
    if not calls:
        fields.pop("tool_calls", None)
    for field in fields.values():
        if field.get("content") == "json":
            # A call that is not JSON becomes text; it must not end the response.
            field["content_args"] = {"allow_non_json": True} | field.get("content_args", {})
    return spec


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How the responses to one request are parsed."""

    new_parser: Callable[[], ResponseParser | None]
    """Creates the parser of one choice; `None` if all text is answer."""
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the generated text."""
    reasoning: ReasoningTokens | None = None
    """The model may think before it writes what a grammar restricts."""


_ALL_ANSWER = ResponseFormat(lambda: None)


class ResponseParserFactory:
    """Creates the response parsers of one model."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._template = template
        self._declared: Mapping[str, Any] | None = getattr(tokenizer, "response_template", None)
        source = (template.source or "") + (template.tool_source or "")
        # What the template renders in earlier messages the model was trained to write.
        self._thinks = self._declared is None and (_THINK in source or _END_THINK in source)
        self._calls = self._declared is None and _CALL in source
        self._think_ids = _token_ids(tokenizer, _THINK, _END_THINK) if self._thinks else None
        # Marks that are special tokens are visible only if those are decoded too.
        if self._declared is None:
            marks = self._thinks * [_THINK, _END_THINK] + self._calls * [_CALL, "</tool_call>"]
            written = " ".join(marks)
        else:
            written = json.dumps(self._declared, ensure_ascii=False)
        self._needs_special_tokens = any(
            str(token) in written for token in tokenizer.all_special_tokens
        )

    def messages(self, request: GenerationRequest) -> tuple[Message, ...]:
        """Return the conversation, with tools and tool calls as text where the template lacks them.

        Raises:
            UnsupportedError: the chat template has no tools, and the request requires none.
        """
        messages = request.messages
        if not self._template.supports_tool_calls:
            messages = tool_messages_as_text(messages)
        if not request.tools or self._template.supports_tools:
            return messages
        if not request.required_tools:
            raise UnsupportedError(
                "this model's chat template has no tools, so the model cannot choose one itself",
                hint="set tool_choice to 'required' or name a function, or use a model with tools",
                param="tools",
            )
        text = tools_as_text(request.tools)
        first, *rest = messages
        if first.role in ("system", "developer"):
            return (replace(first, content=f"{text}\n\n{first.content}"), *rest)
        return (Message("system", text), *messages)

    @staticmethod
    def grammar(request: GenerationRequest) -> Grammar | None:
        """Return the grammar that restricts the response to calls of the required tools."""
        if not request.required_tools:
            return None
        required = [tool for tool in request.tools if tool.name in request.required_tools]
        schema = tool_call_schema(required, parallel=request.parallel_tool_calls)
        return Grammar("json_schema", json.dumps(schema, ensure_ascii=False), param="tools")

    def format(self, request: GenerationRequest, prompt: str) -> ResponseFormat:
        """Return how the responses to a request are parsed.

        Args:
            prompt: the rendered prompt. It may begin the response, for example with `<think>`.
        """
        if not request.messages:
            return _ALL_ANSWER
        skip = not self._needs_special_tokens
        restricted = bool(request.required_tools) or request.sampling.grammar is not None
        opened = prompt.rstrip().endswith(_THINK)
        if restricted:
            reasoning = self._reasoning_tokens(request, prompt, opened=opened)
            calls = bool(request.required_tools)
            if reasoning is None:
                return ResponseFormat(RequiredToolCallParser) if calls else _ALL_ANSWER
            return ResponseFormat(
                lambda: RestrictedResponseParser(calls=calls, opened=opened), skip, reasoning
            )
        calls = bool(request.tools)
        template = declared_template(self._declared, calls=calls)
        if template is not None:
            tools = [tool_definition(tool) for tool in request.tools]
            return ResponseFormat(lambda: TemplateResponseParser(template, tools, prompt), skip)
        thinks, calls = self._thinks, calls and self._calls
        if not (thinks or calls):
            return _ALL_ANSWER
        return ResponseFormat(
            lambda: MarkedResponseParser(reasoning=thinks, calls=calls, opened=opened), skip
        )

    def _reasoning_tokens(
        self, request: GenerationRequest, prompt: str, *, opened: bool
    ) -> ReasoningTokens | None:
        """Return the marks of the reasoning that may precede a restricted response, if any."""
        is_off = request.template_kwargs.get("enable_thinking") is False
        if self._think_ids is None or is_off or prompt.rstrip().endswith(_END_THINK):
            return None
        return ReasoningTokens(*self._think_ids, opened=opened)


def _token_ids(tokenizer: Any, first: str, second: str) -> tuple[int, int] | None:
    """Return the ids of two tokens; `None` if one is not in the vocabulary."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if first not in vocabulary or second not in vocabulary:
        return None
    return vocabulary[first], vocabulary[second]


class RestrictedResponseParser:
    """Parses a response that a grammar restricts after the reasoning.

    Args:
        calls: whether the grammar is that of required tool calls.
        opened: whether the prompt ends with `<think>`.
    """

    def __init__(self, *, calls: bool, opened: bool) -> None:
        self._think = MarkedResponseParser(reasoning=True, calls=False, opened=opened)
        self._calls = RequiredToolCallParser() if calls else None

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        return self._converted(self._think.feed(text))

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        return self._converted(self._think.end())

    def _converted(self, deltas: list[ResponseDelta]) -> list[ResponseDelta]:
        if self._calls is None:
            return deltas
        return [
            converted
            for delta in deltas
            for converted in (self._calls.feed(delta.text) if delta.text else [delta])
        ]


class TemplateResponseParser:
    """Parses a response by a response template.

    White space between a marker and what it encloses belongs to the marker.

    Args:
        template: as `declared_template` returns it.
        tools: definitions of the tools that the request offers.
        prefix: the part of the response that the prompt begins, such as an opened `<think>`.
    """

    def __init__(self, template: Any, tools: Sequence[dict[str, object]], prefix: str) -> None:
        from transformers.utils.chat_parsing import ResponseParser as TransformersParser

        self._parser = TransformersParser(template, prefix=prefix, tools=list(tools) or None)
        self._failed = False
        self._white_space = ""
        """White space that is returned once it is known not to lie next to a marker."""
        self._after_marker = bool(prefix)

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        if self._failed:
            return [ResponseDelta(text)] if text else []
        try:
            return self._deltas(self._parser.feed(text))
        except ValueError:
            # The response breaks the model's own format: the rest of it is plain text.
            self._failed = True
            return [ResponseDelta(text)]

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        if self._failed:
            return []
        try:
            deltas = self._deltas(self._parser.finalize()[1])
        except ValueError:
            deltas = []
        return [*deltas, ResponseDelta(self._white_space)] if self._white_space else deltas

    def _deltas(self, events: Sequence[Mapping[str, Any]]) -> list[ResponseDelta]:
        deltas: list[ResponseDelta] = []
        for event in events:
            kind, field = event["type"], event["field"]
            if kind == "region_chunk" and not event.get("dirty"):
                text = self._trimmed(event["text"])
                if field == "content":
                    deltas.append(ResponseDelta(text=text))
                elif field in ("reasoning_content", "thinking"):
                    deltas.append(ResponseDelta(reasoning=text))
                continue
            if kind == "region_close" and field == "tool_calls":
                deltas.append(_tool_call_delta(event["value"]))
            if field != "content":
                self._white_space, self._after_marker = "", True
        return [delta for delta in deltas if delta != ResponseDelta()]

    def _trimmed(self, text: str) -> str:
        if self._after_marker:
            text = text.lstrip()
            self._after_marker = not text
        text, self._white_space = self._white_space + text, ""
        stripped = text.rstrip()
        self._white_space = text[len(stripped) :]
        return stripped


def _tool_call_delta(value: Any) -> ResponseDelta:
    """Return a parsed call; a value that is not a call is returned as text."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        text = function if isinstance(function, str) else json.dumps(value, ensure_ascii=False)
        return ResponseDelta(text=f"<tool_call>{text}</tool_call>")
    name, arguments = function["name"], function.get("arguments", function.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ResponseDelta(call=ToolCall(name, arguments, new_tool_call_id()))
