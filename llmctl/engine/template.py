"""Renders a conversation into prompt tokens by the model's own chat template, and only by that."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError, TemplateError
from llmctl.types import Message


class ChatTemplate:
    """The chat template of one tokenizer.

    What a person writes stays text: where a message contains the spelling of a control token such
    as `<|im_end|>`, the spelling is tokenised as ordinary characters.
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
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the prompt's token ids.

        Raises:
            TemplateError: there is no template, or it refuses this conversation.
        """
        if self._source is None:
            raise TemplateError(
                "this model has no chat template, so it cannot answer a conversation",
                hint="give one with --chat-template FILE, or choose an instruct model",
                param="messages",
            )
        shielded: list[str] = []
        turns = [{"role": m.role, "content": self._shield(m.content, shielded)} for m in messages]
        text = self._render(turns, add_generation_prompt)
        if not shielded:
            return self._tokens(text)
        ids: list[int] = []
        marks = re.compile("|".join(re.escape(_mark(i)) for i in range(len(shielded))))
        position = 0
        for match in marks.finditer(text):
            ids += self._tokens(text[position : match.start()])
            ids += self._tokens(shielded[int(match.group()[1 + len(_NONCE) : -1])], plain=True)
            position = match.end()
        return ids + self._tokens(text[position:])

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:  # templates raise whatever they like, by design
            raise TemplateError(
                f"the chat template refuses this conversation: {error}", param="messages"
            ) from error
        return text

    def _shield(self, content: str, shielded: list[str]) -> str:
        """Replace the spellings of control tokens by marks that survive rendering."""
        if self._specials is None:
            return content

        def mark(match: re.Match[str]) -> str:
            shielded.append(match.group())
            return _mark(len(shielded) - 1)

        return self._specials.sub(mark, content)

    def _tokens(self, text: str, *, plain: bool = False) -> list[int]:
        # The template writes its own BOS: adding special tokens would double it.
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=plain, verbose=False
        ).input_ids
        return ids


_NONCE = secrets.token_hex(8)


def _mark(number: int) -> str:
    # Private-use characters, which no template gives a meaning; nobody can guess the nonce.
    return f"\ue0f0{_NONCE}{number}\ue0f1"
