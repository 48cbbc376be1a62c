"""Rendering of conversations into prompts with the model's own chat template."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmctl.engine.chat.control_tokens import CharSpan, ControlTokenEscaper
from llmctl.engine.chat.tokenize import TextTokenizer, TokenizedText
from llmctl.errors import ConfigError, TemplateError
from llmctl.types import Message, Tool

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

    def __init__(self, tokenizer: Any, source: str | None) -> None:
        self._tokenizer = tokenizer
        self._source = source
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
                source = source.get("default")
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
        return "tools" in (self._source or "")

    @property
    def supports_tool_calls(self) -> bool:
        """Whether the template renders the tool calls of earlier messages."""
        return "tool_calls" in (self._source or "")

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
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._source,
                tokenize=False,
                tools=tools,
                add_generation_prompt=(
                    options.add_generation_prompt and not options.continue_final_message
                ),
                continue_final_message=options.continue_final_message,
                **options.template_kwargs,
            )
        except Exception as error:  # a template may raise anything
            raise _rejected(error) from error
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
                chat_template=self._source,
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
        if turns and turns[0]["role"] == "system" and not self._has_system_role:
            turns = _fold_system(turns)
        return turns, definitions or None

    @cached_property
    def _has_system_role(self) -> bool:
        def renders(*turns: tuple[str, str]) -> bool:
            try:
                text = self._tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in turns],
                    chat_template=self._source,
                    tokenize=False,
                )
            except Exception:
                return False
            return all(content in text for _, content in turns)

        # A template that cannot render a single user message proves nothing.
        return renders(("system", "Instruct"), ("user", "Ask")) or not renders(("user", "Ask"))

    def _turn(self, message: Message) -> dict[str, object]:
        """Return a message as chat templates expect it (Transformers' documentation)."""
        role: str = message.role
        if role == "developer" and "developer" not in (self._source or ""):
            role = "system"  # OpenAI's earlier name for the role
        turn: dict[str, object] = {"role": role, "content": message.content}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.parsed()},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            turn["name"] = message.name
        return turn


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


def tool_definition(tool: Tool) -> dict[str, object]:
    """Return a tool in OpenAI's JSON form, which chat templates take too."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
