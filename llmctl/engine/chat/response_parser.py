"""Parsing of generated text into answer, reasoning and tool calls.

Models mark these parts in different ways. Where a tokenizer has a response template, Transformers'
parser (`transformers.utils.chat_parsing`) follows it. For two conventions that many models share
and few declare, `<think>` and Hermes' `<tool_call>`, a response template is derived from the chat
template.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmctl.engine.chat.response_delta import ResponseDelta, ResponseParser, new_tool_call_id
from llmctl.engine.chat.template import ChatTemplate, tool_definition
from llmctl.engine.chat.tool_choice import (
    RequiredToolCallParser,
    tool_call_schema,
    tool_messages_as_text,
    tools_as_text,
)
from llmctl.errors import UnsupportedError
from llmctl.types import GenerationRequest, Grammar, Message, ToolCall

_THINK = "<think>"
_REASONING = {"open": _THINK, "close": "</think>", "content": "text"}
_HERMES_CALL = {
    # The newline between two calls belongs neither to a call nor to the answer.
    "open_pattern": r"\s*<tool_call>",
    "close": "</tool_call>",
    "repeats": True,
    "content": "json",
    "transform": {"type": "function", "function": "{content}"},
}


def response_template(declared: Mapping[str, Any] | None, chat_template: str | None) -> Any | None:
    """Return a model's response template in Transformers' form; `None` if all text is answer.

    Args:
        declared: the tokenizer's own `response_template`.
        chat_template: its Jinja source. If it renders `<think>` or Hermes' `<tool_call>` in
            earlier messages, the model was trained to write them.
    """
    if declared is not None:
        spec: dict[str, Any] = copy.deepcopy(dict(declared))
    else:
        fields: dict[str, Any] = {}
        source = chat_template or ""
        if _THINK in source or "</think>" in source:
            fields["reasoning_content"] = dict(_REASONING)
        if "<tool_call>" in source:
            fields["tool_calls"] = dict(_HERMES_CALL)
        if not fields:
            return None
        spec = {
            "defaults": {"role": "assistant"},
            # The parser gets the part of the response that the prompt begins, and nothing before.
            "start_anchor_pattern": r"\A",
            "fields": fields | {"content": {"content": "text"}},
        }
    for field in spec.get("fields", {}).values():
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


_ALL_ANSWER = ResponseFormat(lambda: None)


class ResponseParserFactory:
    """Creates the response parsers of one model."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._template = template
        declared = getattr(tokenizer, "response_template", None)
        self._is_declared = declared is not None
        self._response_template: Any = response_template(declared, template.source)
        written = json.dumps(self._response_template, ensure_ascii=False)
        # Markers that are special tokens are visible only if those are decoded too.
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
        if request.required_tools:
            return ResponseFormat(RequiredToolCallParser)
        template = self._response_template
        if template is None or not request.messages or request.sampling.grammar is not None:
            return _ALL_ANSWER
        tools = [tool_definition(tool) for tool in request.tools]
        prefix = prompt if self._is_declared else _opened_reasoning(prompt)
        return ResponseFormat(
            lambda: TemplateResponseParser(template, tools, prefix),
            skip_special_tokens=not self._needs_special_tokens,
        )


def _opened_reasoning(prompt: str) -> str:
    """Return the `<think>` at the end of a prompt with the white space after it, or nothing."""
    end = len(prompt.rstrip())
    return prompt[end - len(_THINK) :] if prompt[:end].endswith(_THINK) else ""


class TemplateResponseParser:
    """Parses a response by a response template.

    White space between a marker and what it encloses belongs to the marker.

    Args:
        template: as `response_template` returns it.
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
    name, arguments = function["name"], function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ResponseDelta(call=ToolCall(name, arguments, new_tool_call_id()))
