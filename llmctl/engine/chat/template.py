"""Renders a conversation into prompt tokens by the model's own chat template, and only by that."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llmctl.engine.chat.control_tokens import CharSpan, ControlTokenEscaper
from llmctl.engine.chat.tokenize import TextTokenizer, TokenizedText
from llmctl.errors import ConfigError, TemplateError
from llmctl.types import Message, Tool

__all__ = ["ChatTemplate", "TokenizedText"]


class ChatTemplate:
    """The chat template of one tokenizer.

    What a person writes stays text: where a message, a tool call or the description of a tool
    contains the spelling of a control token such as `<|im_end|>`, it is tokenised as ordinary
    characters.

    A template without a system role (Gemma's) gets the system's words at the head of the first
    user's message, with an empty line between.
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
        """Whether it tells the model of tools."""
        return "tools" in (self._source or "")

    @property
    def supports_tool_calls(self) -> bool:
        """Whether it shows the model what it has called before."""
        return "tool_calls" in (self._source or "")

    @property
    def fingerprint(self) -> str | None:
        """First 16 hex digits of the template's SHA-256: equal prints render equally."""
        if self._source is None:
            return None
        return hashlib.sha256(self._source.encode()).hexdigest()[:16]

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Return the prompt's token ids, as `render` makes them."""
        return self.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        ).ids

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> TokenizedText:
        """Write the conversation out and tokenise it.

        Args:
            continue_final_message: leave the last message open, so that a reply goes on in it.
            template_kwargs: further variables of the template, such as `enable_thinking`.

        Raises:
            TemplateError: there is no template, or it refuses this conversation.
        """
        written = self.write(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        return self.tokens.of([(written, ())])[0]

    def write(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> str:
        """Return what `render` would tokenise, with the shield's marks in it.

        Raises:
            TemplateError: as `render`.
        """
        self._check(template_kwargs)
        turns, described = self._shielded(messages, tools)
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._source,
                tokenize=False,
                tools=described,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                **(template_kwargs or {}),
            )
        except Exception as error:  # templates raise whatever they like, by design
            raise _refusal(error) from error
        return text

    @cached_property
    def has_generation_blocks(self) -> bool:
        """Whether the template itself says what the assistant writes, by `{% generation %}`."""
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self._source or ""))

    def render_with_assistant_spans(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        template_kwargs: Mapping[str, object] | None = None,
    ) -> tuple[str, list[CharSpan]]:
        """Write a finished conversation; also return the spans of its `{% generation %}` blocks.

        Raises:
            TemplateError: as `render`.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        self._check(template_kwargs)
        turns, described = self._shielded(messages, tools)
        try:
            made: Any = render_jinja_template(
                [turns],
                tools=described,
                chat_template=self._source,
                return_assistant_tokens_mask=True,
                **(self._tokenizer.special_tokens_map | dict(template_kwargs or {})),
            )
        except Exception as error:
            raise _refusal(error) from error
        (text,), (spans,) = made
        return text, spans

    def _check(self, template_kwargs: Mapping[str, object] | None) -> None:
        if self._source is None:
            raise TemplateError(
                "this model has no chat template, so it cannot answer a conversation",
                hint="give one with --chat-template FILE, or choose an instruct model",
                param="messages",
            )
        taken = sorted(_OWN_VARIABLES & set(template_kwargs or {}))
        if taken:
            raise TemplateError(
                f"the template variable {taken[0]!r} is not free: the request sets it elsewhere",
                param="chat_template_kwargs",
            )

    def _shielded(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Any], list[Any] | None]:
        try:
            turns = [self.escaper.escape(self._turn(message)) for message in messages]
            described = [self.escaper.escape(tool_definition(tool)) for tool in tools]
        except RecursionError as error:
            raise TemplateError(
                "the arguments of a call, or the description of a tool, are nested too deeply",
                param="tools" if tools else "messages",
            ) from error
        if turns and turns[0]["role"] == "system" and not self._has_system_role:
            turns = _fold_system(turns)
        return turns, described or None

    @cached_property
    def _has_system_role(self) -> bool:
        def shows(*turns: tuple[str, str]) -> bool:
            try:
                text = self._tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in turns],
                    chat_template=self._source,
                    tokenize=False,
                )
            except Exception:
                return False
            return all(content in text for _, content in turns)

        # A template that cannot even show a question is no witness.
        return shows(("system", "Instruct"), ("user", "Ask")) or not shows(("user", "Ask"))

    def _turn(self, message: Message) -> dict[str, object]:
        """Return a message as chat templates expect it (Transformers' documentation)."""
        role: str = message.role
        if role == "developer" and "developer" not in (self._source or ""):
            role = "system"  # what OpenAI called it before
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
    """Put the leading system turns' words before those of the user's turn that follows them."""
    count = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    rest = turns[count:]
    if not rest or rest[0]["role"] != "user":
        return turns
    words = [turn["content"] for turn in turns[: count + 1] if turn["content"]]
    return [rest[0] | {"content": "\n\n".join(words)}, *rest[1:]]


def _refusal(error: Exception) -> TemplateError:
    return TemplateError(f"the chat template refuses this conversation: {error}", param="messages")


def tool_definition(tool: Tool) -> dict[str, object]:
    """Describe a tool as OpenAI does, and chat templates after it."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


_OWN_VARIABLES = {
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
