"""Rendering of conversations into prompts with the model's own chat template."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmctl.engine.chat.control_tokens import CharSpan, ControlTokenEscaper
from llmctl.engine.chat.template_probe import TemplateProbe, tool_definition
from llmctl.engine.chat.tokenize import TextTokenizer, TokenizedText
from llmctl.errors import ConfigError, TemplateError
from llmctl.types import Message, Tool, ToolCall

_log = logging.getLogger(__name__)

_RESERVED_VARIABLES = {
    "conversation",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
}


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What a chat template renders besides the messages."""

    tools: Sequence[Tool] = ()
    add_generation_prompt: bool = True
    """End with the header of an assistant message. Ignored with `continue_final_message`."""
    continue_final_message: bool = False
    """Leave the last message open, so that the reply continues it."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the template, such as `enable_thinking`."""


_DEFAULT = RenderOptions()


class ChatTemplate:
    """The chat template of one tokenizer.

    User text stays text: a control token such as `<|im_end|>` in a message, a tool call or the
    description of a tool is tokenised as ordinary characters.

    For a template without a system role (Gemma's), the system message is put before the first user
    message, with an empty line between them.
    """

    def __init__(self, tokenizer: Any, source: str | None, tool_source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self.tool_source = tool_source
        """The template named `tool_use`, for conversations with tools; `None` if there is none."""
        added = tokenizer.added_tokens_decoder.values() if source else ()
        self.escaper = ControlTokenEscaper(str(token) for token in added if token.special)
        self.tokens = TextTokenizer(tokenizer, self.escaper)

    @classmethod
    def of(cls, tokenizer: Any, override: str | None = None) -> "ChatTemplate":
        """Take the tokenizer's template, or the Jinja file at `override` in its place.

        Raises:
            ConfigError: the file cannot be read.
        """
        if override is None:
            source = tokenizer.chat_template
            if isinstance(source, dict):  # several named templates
                default = source.get("default", source.get("tool_use"))
                return cls(tokenizer, default, source.get("tool_use"))
            return cls(tokenizer, source)
        try:
            return cls(tokenizer, Path(override).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the chat template {override}: {error}") from error

    def __bool__(self) -> bool:
        return self._source is not None

    @property
    def source(self) -> str | None:
        """The Jinja source."""
        return self._source

    @property
    def supports_tools(self) -> bool:
        """Whether the template renders the list of tools."""
        return self.probe.tools_in is not None

    @property
    def supports_tool_calls(self) -> bool:
        """Whether the template renders the tool calls of earlier messages."""
        return self.probe.renders_calls

    @cached_property
    def probe(self) -> TemplateProbe:
        """What is known about the template from rendering examples."""
        return TemplateProbe(self._try, self.tool_source or self._source or "")

    def _try(
        self,
        turns: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str | None:
        """Render turns; return `None` if the template rejects them."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._source_for(turns, tools),
                tokenize=False,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template may raise anything
            _log.debug("the chat template rejects a probe", exc_info=error)
            return None
        return text

    def _source_for(self, turns: Sequence[Mapping[str, Any]], tools: object) -> str | None:
        """Return the template for a conversation: `tool_use` if it has tools or calls."""
        has_calls = any("tool_calls" in turn or turn["role"] == "tool" for turn in turns)
        return self.tool_source if self.tool_source and (tools or has_calls) else self._source

    @cached_property
    def has_generation_blocks(self) -> bool:
        """Whether the template marks the assistant's text with `{% generation %}` blocks."""
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self._source or ""))

    @property
    def fingerprint(self) -> str | None:
        """First 16 hex digits of the SHA-256 of the template's source."""
        if self._source is None:
            return None
        return hashlib.sha256(self._source.encode()).hexdigest()[:16]

    def render(
        self, messages: Sequence[Message], options: RenderOptions = _DEFAULT
    ) -> TokenizedText:
        """Render a conversation and tokenise it.

        Raises:
            TemplateError: there is no template, or it rejects this conversation.
        """
        return self.tokens.encode([(self.render_text(messages, options), ())])[0]

    def render_text(self, messages: Sequence[Message], options: RenderOptions = _DEFAULT) -> str:
        """Return the text that `render` tokenises, with the placeholders of `escaper` in it.

        Raises:
            TemplateError: as `render`.
        """
        self._check(options)
        turns, tools = self._escaped(messages, options.tools)
        try:
            try:
                return self._render(turns, tools, options)
            except Exception:
                if not any(isinstance(call, str) for call in _arguments(turns)):
                    raise
                # Arguments that are not an object are rendered as text where the template takes it.
                for turn in turns:
                    _wrap_arguments(turn)
                return self._render(turns, tools, options)
        except Exception as error:  # a template may raise anything
            raise _rejected(error) from error

    def _render(self, turns: list[Any], tools: list[Any] | None, options: RenderOptions) -> str:
        text: str = self._tokenizer.apply_chat_template(
            turns,
            chat_template=self._source_for(turns, tools),
            tokenize=False,
            tools=tools,
            add_generation_prompt=(
                options.add_generation_prompt and not options.continue_final_message
            ),
            continue_final_message=options.continue_final_message,
            **options.template_kwargs,
        )
        return text

    def render_with_assistant_spans(
        self, messages: Sequence[Message], options: RenderOptions = _DEFAULT
    ) -> tuple[str, list[CharSpan]]:
        """Render a finished conversation; also return the spans of its `{% generation %}` blocks.

        Raises:
            TemplateError: as `render`.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        self._check(options)
        turns, tools = self._escaped(messages, options.tools)
        try:
            rendered: Any = render_jinja_template(
                [turns],
                tools=tools,
                chat_template=self._source_for(turns, tools),
                return_assistant_tokens_mask=True,
                **(self._tokenizer.special_tokens_map | dict(options.template_kwargs)),
            )
        except Exception as error:
            raise _rejected(error) from error
        (text,), (spans,) = rendered
        return text, spans

    def _check(self, options: RenderOptions) -> None:
        if self._source is None:
            raise TemplateError(
                "this model has no chat template, so it cannot answer a conversation",
                hint="give one with --chat-template FILE, or choose an instruct model",
                param="messages",
            )
        reserved = sorted(_RESERVED_VARIABLES & set(options.template_kwargs))
        if reserved:
            raise TemplateError(
                f"the template variable {reserved[0]!r} is reserved: the request sets it elsewhere",
                param="chat_template_kwargs",
            )

    def _escaped(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Any], list[Any] | None]:
        """Return messages and tools as templates expect them, with control tokens escaped."""
        try:
            turns = [self.escaper.escape(self._turn(message)) for message in messages]
            definitions = [self.escaper.escape(tool_definition(tool)) for tool in tools]
        except RecursionError as error:
            raise TemplateError(
                "the arguments of a call, or the description of a tool, are nested too deeply",
                param="tools" if tools else "messages",
            ) from error
        if turns and turns[0]["role"] == "system" and not self.probe.has_system_role:
            turns = _fold_system(turns)
        if definitions and self.probe.tools_in == "message":
            if not turns or turns[0]["role"] != "system":
                turns = [{"role": "system", "content": ""}, *turns]
            text = json.dumps(definitions, ensure_ascii=False)
            return [turns[0] | {"tools": text}, *turns[1:]], None
        return turns, definitions or None

    def _turn(self, message: Message) -> dict[str, object]:
        """Return a message as chat templates expect it (Transformers' documentation)."""
        role: str = message.role
        if role == "developer" and "developer" not in (self._source or ""):
            role = "system"  # OpenAI's earlier name for the role
        turn: dict[str, object] = {"role": role, "content": message.content}
        if message.reasoning is not None:
            turn |= self.probe.reasoning_fields(message.content, message.reasoning)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self._call_id(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._arguments(call)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = self._call_id(message.tool_call_id)
        if message.name is not None:
            turn["name"] = message.name
        return turn

    def _arguments(self, call: ToolCall) -> dict[str, object] | str:
        """Return arguments as the template takes them: as an object, or as JSON."""
        arguments = call.parsed_or_text()
        if self.probe.arguments_as_text and isinstance(arguments, dict):
            return json.dumps(arguments, ensure_ascii=False)
        return arguments

    def _call_id(self, call_id: str) -> str:
        """Return an id as the template takes it; equal ids stay equal."""
        if not self.probe.requires_short_call_ids or re.fullmatch(r"[A-Za-z0-9]{9}", call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _arguments(turns: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [c["function"]["arguments"] for turn in turns for c in turn.get("tool_calls", ())]


def _wrap_arguments(turn: Mapping[str, Any]) -> None:
    """Replace arguments that are text by an object that holds it."""
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        if isinstance(function["arguments"], str):
            function["arguments"] = {"arguments": function["arguments"]}


def _fold_system(turns: list[Any]) -> list[Any]:
    """Put the text of the leading system turns before the user turn that follows them."""
    count = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    rest = turns[count:]
    if not rest or rest[0]["role"] != "user":
        return turns
    contents = [turn["content"] for turn in turns[: count + 1] if turn["content"]]
    return [rest[0] | {"content": "\n\n".join(contents)}, *rest[1:]]


def _rejected(error: Exception) -> TemplateError:
    return TemplateError(f"the chat template rejects this conversation: {error}", param="messages")
