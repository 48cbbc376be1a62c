"""Renders a conversation into prompt tokens by the model's own chat template, and only by that."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError, TemplateError
from llmctl.types import Message, Tool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation written out by its template."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    """Of each token, the half-open span of characters in `text`; empty where the tokenizer, one
    written in Python, cannot tell."""

    def __add__(self, other: "Rendered") -> "Rendered":
        start = len(self.text)
        moved = [(start + first, start + last) for first, last in other.offsets]
        return Rendered(self.text + other.text, self.ids + other.ids, self.offsets + moved)


class ChatTemplate:
    """The chat template of one tokenizer.

    What a person writes stays text: where a message, a tool call or the description of a tool
    contains the spelling of a control token such as `<|im_end|>`, it is tokenised as ordinary
    characters.
    """

    def __init__(self, tokenizer: Any, source: str | None) -> None:
        self._tokenizer = tokenizer
        self._source = source
        specials = sorted(
            {str(t) for t in tokenizer.added_tokens_decoder.values()} if source else (),
            key=len,
            reverse=True,
        )
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None

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
    ) -> Rendered:
        """Write the conversation out and tokenise it.

        Args:
            continue_final_message: leave the last message open, so that a reply goes on in it.
            template_kwargs: further variables of the template, such as `enable_thinking`.

        Raises:
            TemplateError: there is no template, or it refuses this conversation.
        """
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
        shielded: list[str] = []
        turns = [self._shield(self._turn(message), shielded) for message in messages]
        text = self._write(
            turns,
            tools=[self._shield(_function(tool), shielded) for tool in tools] or None,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            **(template_kwargs or {}),
        )
        return self._tokenise(text, shielded)

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

    def _write(self, turns: list[Any], **variables: Any) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, chat_template=self._source, tokenize=False, **variables
            )
        except Exception as error:  # templates raise whatever they like, by design
            raise TemplateError(
                f"the chat template refuses this conversation: {error}", param="messages"
            ) from error
        return text

    def _shield(self, value: Any, shielded: list[str]) -> Any:
        """Replace the spellings of control tokens by marks that survive rendering."""
        if self._specials is None:
            return value
        if isinstance(value, dict):
            return {key: self._shield(item, shielded) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._shield(item, shielded) for item in value]
        if not isinstance(value, str):
            return value

        def mark(match: re.Match[str]) -> str:
            shielded.append(match.group())
            return _mark(len(shielded) - 1)

        return self._specials.sub(mark, value)

    def _tokenise(self, text: str, shielded: Sequence[str]) -> Rendered:
        if not shielded:
            return self._tokens(text)
        whole = Rendered("", [], [])
        marks = re.compile("|".join(re.escape(_mark(i)) for i in range(len(shielded))))
        position = 0
        for match in marks.finditer(text):
            whole += self._tokens(text[position : match.start()])
            whole += self._tokens(shielded[int(match.group()[1 + len(_NONCE) : -1])], plain=True)
            position = match.end()
        return whole + self._tokens(text[position:])

    def _tokens(self, text: str, *, plain: bool = False) -> Rendered:
        # The template writes its own BOS: adding special tokens would double it.
        made = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=plain,
            return_offsets_mapping=self._tokenizer.is_fast,
            verbose=False,
        )
        return Rendered(text, made.input_ids, made.get("offset_mapping", []))


def _function(tool: Tool) -> dict[str, object]:
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
_NONCE = secrets.token_hex(8)


def _mark(number: int) -> str:
    # Private-use characters, which no template gives a meaning; nobody can guess the nonce.
    return f"\ue0f0{_NONCE}{number}\ue0f1"
