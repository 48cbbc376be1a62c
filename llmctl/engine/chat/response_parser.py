"""Parsing of generated text into answer, reasoning and tool calls.

The formats of calls and reasoning are those of `formats.registry`, recognised by what the chat
template prints and says, or named by the user. A tokenizer whose format is not known may have a
response template, which Transformers' parser (`transformers.utils.chat_parsing`) follows.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llmctl.engine.chat.call_layout import allows, call_layout
from llmctl.engine.chat.declared_response import TemplateResponseParser, declared_template
from llmctl.engine.chat.formats.families import GENERIC
from llmctl.engine.chat.formats.format_parser import (
    FormatParser,
    format_marks,
    reasoning_parser,
    response_reader,
)
from llmctl.engine.chat.formats.format_types import (
    ReasoningFormat,
    TemplateTexts,
    ToolCallFormat,
)
from llmctl.engine.chat.formats.registry import (
    named_format,
    reasoning_formats,
    recognise_calls,
    recognise_reasoning,
    tool_call_formats,
)
from llmctl.engine.chat.parsing.channels import Channels
from llmctl.engine.chat.response_delta import (
    ReasoningTokens,
    ResponseParser,
)
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.chat.template_probe import tool_definition
from llmctl.engine.chat.tool_choice import (
    RequiredToolCallParser,
    RestrictedResponseParser,
    tool_call_schema,
    tool_messages_as_text,
    tools_as_text,
)
from llmctl.types import CallLayout, GenerationRequest, Grammar, Message, ResponseFormats

_ANY: Mapping[str, object] = {"type": "object", "additionalProperties": True}
_log = logging.getLogger(__name__)
NO_FORMAT = "none"
"""Name that turns the reading of calls or of reasoning off."""


def check_names(tool_call_parser: str | None, reasoning_parser: str | None) -> None:
    """Check the names of formats that a user gave.

    Raises:
        ConfigError: a name is unknown.
    """
    _named_calls(tool_call_parser)
    _named_reasoning(reasoning_parser)


def _named_calls(name: str | None) -> ToolCallFormat | None:
    if name is None or name == NO_FORMAT:
        return None
    return named_format(name, tool_call_formats(), "tool-call parser")


def _named_reasoning(name: str | None) -> ReasoningFormat | None:
    if name is None or name == NO_FORMAT:
        return None
    return named_format(name, reasoning_formats(), "reasoning parser")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How the responses to one request are parsed."""

    new_parser: Callable[[], ResponseParser | None]
    """Creates the parser of one choice; `None` if all text is answer."""
    kept_tokens: frozenset[int] = frozenset()
    """Ids of special tokens that are part of the generated text: the marks of the format."""
    reasoning: ReasoningTokens | None = None
    """The model may think before it writes what a grammar restricts."""


_ALL_ANSWER = ResponseFormat(lambda: None)


class ResponseParserFactory:
    """Creates the response parsers of one model.

    Args:
        tokenizer: of Transformers.
        template: the chat template.
        tool_call_parser: name of the format of calls; `None` chooses by the template.
        reasoning_parser: name of the format of reasoning; `None` chooses by the template.

    Raises:
        ConfigError: a name is unknown.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate,
        *,
        tool_call_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        texts = self._texts() if template else TemplateTexts()
        # A template may print calls and leave it to the user to tell the model of the tools.
        printed = texts if template.supports_tools else TemplateTexts(texts.call)
        known = recognise_calls(printed)
        self.calls = _named_calls(tool_call_parser)
        """Format in which the model is asked for calls."""
        if tool_call_parser is None and template:
            self.calls = known or GENERIC
        self.reasoning = _named_reasoning(reasoning_parser)
        """Format of its reasoning."""
        if reasoning_parser is None:
            self.reasoning = recognise_reasoning(texts)
        self._indent = template.probe.answer_indent if template else ""
        self._declared: Mapping[str, Any] | None = None
        if not (known or tool_call_parser or self.reasoning):
            self._declared = getattr(tokenizer, "response_template", None)

    def _texts(self) -> TemplateTexts:
        template = self._template
        source = (template.source or "") + (template.tool_source or "")
        tokens = {str(token) for token in self._tokenizer.added_tokens_decoder.values()}
        probe = template.probe
        return TemplateTexts(probe.call_text, f"{source}\n{probe.reasoning_text}", tokens)

    @property
    def names(self) -> ResponseFormats:
        """The names of the formats."""
        return ResponseFormats(
            None if self.calls is None else self.calls.name,
            None if self.reasoning is None else self.reasoning.name,
            self.calls is not None and self.tells_tools_in_words,
        )

    @property
    def tells_tools_in_words(self) -> bool:
        """Whether tools are described in the prompt because the template does not render them."""
        return bool(self._template) and not self._template.supports_tools

    def messages(self, request: GenerationRequest) -> tuple[Message, ...]:
        """Return the conversation, with tools and calls as text where the template lacks them."""
        messages = request.messages
        if not self._template.supports_tool_calls:
            messages = tool_messages_as_text(messages)
        if not request.tools or self._template.supports_tools:
            return messages
        text = tools_as_text(request.tools, (self.calls or GENERIC).example)
        first, *rest = messages
        if first.role in ("system", "developer"):
            return (replace(first, content=f"{text}\n\n{first.content}"), *rest)
        return (Message("system", text), *messages)

    @cached_property
    def _layout(self) -> CallLayout | None:
        """How the model writes calls, for a grammar of them."""
        return None if self.calls is None else call_layout(self._template.probe, self.calls)

    def grammar(self, request: GenerationRequest) -> Grammar | None:
        """Return the grammar that restricts the response to calls of the required tools.

        The calls are in the model's own format, or, where that cannot be put into a grammar, in
        JSON.
        """
        if not request.required_tools:
            return None
        required = [tool for tool in request.tools if tool.name in request.required_tools]
        schema = tool_call_schema(required, parallel=request.parallel_tool_calls)
        layout = self._layout
        if layout is not None and not all(allows(layout, tool) for tool in required):
            layout = None
        source = json.dumps(schema, ensure_ascii=False)
        return Grammar("json_schema", source, param="tools", calls=layout)

    def strict_grammar(self, request: GenerationRequest) -> Grammar | None:
        """Return the grammar of the calls in a response that is free otherwise.

        `None` if no tool is strict, or, with a line in the log, if the format has no mark that
        announces calls or cannot hold the schemas.
        """
        if request.required_tools or request.sampling.grammar is not None:
            return None
        if not any(tool.strict for tool in request.tools):
            return None
        layout = self._layout
        tools = [tool if tool.strict else replace(tool, parameters=_ANY) for tool in request.tools]
        if layout is None or not layout.opening or not all(allows(layout, t) for t in tools):
            name = "none" if self.calls is None else self.calls.name
            _log.warning(
                "the arguments of strict tools are not enforced in the format %s without "
                "tool_choice",
                name,
            )
            return None
        schema = tool_call_schema(tools, parallel=request.parallel_tool_calls)
        source = json.dumps(schema, ensure_ascii=False)
        return Grammar("json_schema", source, param="tools", calls=layout, optional=True)

    def format(self, request: GenerationRequest, prompt: str) -> ResponseFormat:
        """Return how the responses to a request are parsed.

        Args:
            request: the request.
            prompt: the rendered prompt. It may begin the response, for example with `<think>`.
        """
        if not request.messages:
            return _ALL_ANSWER
        end = prompt.rstrip()
        opened = self.reasoning is not None and end.endswith(self.reasoning.open.rstrip())
        if request.required_tools or request.sampling.grammar is not None:
            return self._restricted(request, end, opened=opened)
        offered = bool(request.tools)
        declared = declared_template(self._declared, calls=offered)
        if declared is not None:
            tools = [tool_definition(tool) for tool in request.tools]
            marks = json.dumps(declared, ensure_ascii=False)
            return ResponseFormat(
                lambda: TemplateResponseParser(declared, tools, prompt), self._kept_in([marks])
            )
        calls = self.calls if offered else None
        read = response_reader(
            calls, self.reasoning, offered=offered, opened=opened, indent=self._indent
        )
        if read is None:
            return _ALL_ANSWER
        tokens = None
        if any(tool.strict for tool in request.tools):
            tokens = self._reasoning_tokens(request, end, opened=opened)
        return ResponseFormat(
            lambda: FormatParser(read, request.tools),
            self._kept_in(format_marks(calls, self.reasoning)),
            tokens,
        )

    def _restricted(
        self, request: GenerationRequest, prompt: str, *, opened: bool
    ) -> ResponseFormat:
        """Return how a response that a grammar restricts is parsed."""
        tokens = self._reasoning_tokens(request, prompt, opened=opened)
        calls = bool(request.required_tools)
        grammar = self.grammar(request)
        if grammar is not None and grammar.calls is not None:
            return self._own_format(request, tokens, opened=opened)
        if tokens is None:
            return ResponseFormat(RequiredToolCallParser) if calls else _ALL_ANSWER
        reasoning = self.reasoning
        assert reasoning is not None
        return ResponseFormat(
            lambda: RestrictedResponseParser(
                reasoning_parser(reasoning, opened=opened), calls=calls
            ),
            self._kept_in(format_marks(None, self.reasoning)),
            tokens,
        )

    def _own_format(
        self, request: GenerationRequest, tokens: ReasoningTokens | None, *, opened: bool
    ) -> ResponseFormat:
        """Return how calls that a grammar restricts to the model's own format are parsed."""
        reasoning = None if tokens is None else self.reasoning
        read = response_reader(self.calls, reasoning, offered=True, opened=opened)
        assert read is not None
        return ResponseFormat(
            lambda: FormatParser(read, request.tools),
            self._kept_in(format_marks(self.calls, reasoning)),
            tokens,
        )

    def _kept_in(self, marks: Sequence[str]) -> frozenset[int]:
        """Return the ids of the special tokens that are part of marks."""
        special = {
            str(token): token_id
            for token_id, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }
        special |= dict(
            zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
        )
        return frozenset(
            token_id for text, token_id in special.items() if any(text in mark for mark in marks)
        )

    def _reasoning_tokens(
        self, request: GenerationRequest, prompt: str, *, opened: bool
    ) -> ReasoningTokens | None:
        """Return the marks of the reasoning that may precede a restricted response, if any."""
        marks = self.reasoning
        if marks is None:
            return None
        if marks.channels is not None:
            return self._channel_tokens(marks.channels, calls=bool(request.required_tools))
        is_off = request.template_kwargs.get("enable_thinking") is False
        if is_off or prompt.endswith(marks.close):
            return None
        ids = self._vocabulary.get(marks.open), self._vocabulary.get(marks.close)
        if ids[0] is None or ids[1] is None:
            return None
        return ReasoningTokens(ids[0], (ids[1],), opened=opened)

    def _channel_tokens(self, channels: Channels, *, calls: bool) -> ReasoningTokens | None:
        """Return the marks before the message that a grammar restricts.

        Calls have the header of their message in the grammar; an answer follows its header.
        """
        opening = self._vocabulary.get(channels.channel)
        if opening is None or not channels.answer:
            return None
        next_message = self._ids(channels.ends[0] + channels.start)
        if calls:
            return ReasoningTokens(opening, next_message, opened=False)
        header = self._ids(channels.answer)
        return ReasoningTokens(opening, header, opened=True, forced_ids=next_message + header)

    def _ids(self, marks: str) -> tuple[int, ...]:
        ids: list[int] = self._tokenizer(marks, add_special_tokens=False).input_ids
        return tuple(ids)
