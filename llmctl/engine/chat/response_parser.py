"""What in a reply is answer, what is reasoning, and what calls a tool?

Models mark the parts in ways of their own. Where a tokenizer brings a response template,
Transformers' parser (`transformers.utils.chat_parsing`) follows it; for the conventions below,
which many models share and few declare, one is made from the chat template.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

_REASONING = {"open": "<think>", "close": "</think>", "content": "text"}
_HERMES_CALL = {
    # The newline between two calls belongs to neither, nor to the answer.
    "open_pattern": r"\s*<tool_call>",
    "close": "</tool_call>",
    "repeats": True,
    "content": "json",
    "transform": {"type": "function", "function": "{content}"},
}


def response_template(declared: Mapping[str, Any] | None, chat_template: str | None) -> Any | None:
    """Return the response template of a model, in Transformers' form, or `None` if it has no parts.

    Args:
        declared: the tokenizer's own `response_template`.
        chat_template: its Jinja source. One that writes `<think>` or Hermes' `<tool_call>` of
            earlier turns has taught the model to write them.
    """
    if declared is not None:
        spec: dict[str, Any] = copy.deepcopy(dict(declared))
    else:
        fields: dict[str, Any] = {}
        source = chat_template or ""
        if "<think>" in source or "</think>" in source:
            fields["reasoning_content"] = dict(_REASONING)
        if "<tool_call>" in source:
            fields["tool_calls"] = dict(_HERMES_CALL)
        if not fields:
            return None
        spec = {
            "defaults": {"role": "assistant"},
            # The reader is given what the prompt has begun, and nothing before it.
            "start_anchor_pattern": r"\A",
            "fields": fields | {"content": {"content": "text"}},
        }
    for field in spec.get("fields", {}).values():
        if field.get("content") == "json":
            # A call that is no JSON is shown as it is; it must not end the reply.
            field["content_args"] = {"allow_non_json": True} | field.get("content_args", {})
    return spec


class ResponseParserFactory:
    """Makes the readers of one model's replies."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        declared = getattr(tokenizer, "response_template", None)
        self._declared = declared is not None
        self._marks: Any = response_template(declared, template.source)
        written = json.dumps(self._marks, ensure_ascii=False)
        # Marks that are special tokens are seen only if those are decoded too.
        self._special = any(str(token) in written for token in tokenizer.all_special_tokens)

    def messages(self, request: GenerationRequest) -> tuple[Message, ...]:
        """Return the conversation; what of tools the chat template has no place for is in words.

        Raises:
            UnsupportedError: nothing has taught this model to call them by itself.
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
        words = tools_as_text(request.tools)
        first, *rest = messages
        if first.role in ("system", "developer"):
            return (replace(first, content=f"{words}\n\n{first.content}"), *rest)
        return (Message("system", words), *messages)

    @staticmethod
    def grammar(request: GenerationRequest) -> Grammar | None:
        """Return what holds a reply to the tools that must be called."""
        if not request.required_tools:
            return None
        forced = [tool for tool in request.tools if tool.name in request.required_tools]
        schema = tool_call_schema(forced, parallel=request.parallel_tool_calls)
        return Grammar("json_schema", json.dumps(schema, ensure_ascii=False), param="tools")

    def reader(
        self, request: GenerationRequest, prompt_ids: Sequence[int]
    ) -> tuple[ResponseParser | None, bool]:
        """Return the reader of one choice, `None` if all is answer.

        And whether special tokens are to be left out of the text.
        """
        if request.required_tools:
            return RequiredToolCallParser(), True
        if self._marks is None or not request.messages or request.sampling.grammar is not None:
            return None, True
        tools = [tool_definition(tool) for tool in request.tools]
        return TemplateResponseParser(
            self._marks, tools, self._begun(prompt_ids)
        ), not self._special

    def _begun(self, prompt_ids: Sequence[int]) -> str:
        """Return what the prompt has written of the reply already."""
        if self._declared:
            text: str = self._tokenizer.decode(prompt_ids)
            return text
        opened = re.search(r"<think>\s*$", self._tokenizer.decode(prompt_ids[-8:]))
        return opened.group() if opened else ""


class TemplateResponseParser:
    """Reads a reply by the marks of the model's own response template.

    White space between a mark and what it encloses belongs to the mark.

    Args:
        begun: what the prompt has written of the reply already, such as an opened `<think>`.
    """

    def __init__(self, template: Any, tools: Sequence[dict[str, object]], begun: str) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._parser = ResponseParser(template, prefix=begun, tools=list(tools) or None)
        self._broken = False
        # White space that is shown once it is known to lie at no border.
        self._blank = ""
        self._at_border = bool(begun)

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        if self._broken:
            return [ResponseDelta(text)] if text else []
        try:
            return self._parts(self._parser.feed(text))
        except ValueError:
            # Written against the model's own rules: from here on it is text like any other.
            self._broken = True
            return [ResponseDelta(text)]

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        if self._broken:
            return []
        try:
            parts = self._parts(self._parser.finalize()[1])
        except ValueError:
            parts = []
        return [*parts, ResponseDelta(self._blank)] if self._blank else parts

    def _parts(self, events: Sequence[Mapping[str, Any]]) -> list[ResponseDelta]:
        parts: list[ResponseDelta] = []
        for event in events:
            kind, field = event["type"], event["field"]
            if kind == "region_chunk" and not event.get("dirty"):
                text = self._inner(event["text"])
                if field == "content":
                    parts.append(ResponseDelta(text=text))
                elif field in ("reasoning_content", "thinking"):
                    parts.append(ResponseDelta(reasoning=text))
                continue
            if kind == "region_close" and field == "tool_calls":
                parts.append(_call(event["value"]))
            if field != "content":
                self._blank, self._at_border = "", True
        return [part for part in parts if part != ResponseDelta()]

    def _inner(self, text: str) -> str:
        if self._at_border:
            text = text.lstrip()
            self._at_border = not text
        text, self._blank = self._blank + text, ""
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        return shown


def _call(value: Any) -> ResponseDelta:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        shown = function if isinstance(function, str) else json.dumps(value, ensure_ascii=False)
        return ResponseDelta(text=f"<tool_call>{shown}</tool_call>")
    name, arguments = function["name"], function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ResponseDelta(call=ToolCall(name, arguments, new_tool_call_id()))
