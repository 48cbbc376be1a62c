"""Escaping of control tokens that a user has typed, so that they are tokenised as plain text."""

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

CharSpan = tuple[int, int]
"""Half-open, in characters."""

# Rare Chinese characters (CJK extension B), which no template interprets; random, so that no user
# can type them. A template may print a dictionary: Python prints them as they are.
_FIRST_PLACEHOLDER = 0x20000 + secrets.randbelow(0x6000)


class ControlTokenEscaper:
    """Replaces control tokens in user text by placeholders of the same length.

    The positions of all other characters stay the same. The template and the tokenizer do not see
    the control tokens; `unescape` restores them.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        longest_first = sorted(set(control_tokens), key=lambda token: (-len(token), token))
        self._placeholders = {
            token: chr(_FIRST_PLACEHOLDER + number) * len(token)
            for number, token in enumerate(longest_first)
        }
        self._tokens = {placeholder: token for token, placeholder in self._placeholders.items()}
        self._token_pattern = _alternation(self._placeholders)
        self._placeholder_pattern = _alternation(self._tokens)

    def escape(self, value: Any) -> Any:
        """Return a copy of JSON-like data with a placeholder for every control token in it."""
        if self._token_pattern is None:
            return value
        if isinstance(value, dict):
            return {self.escape(key): self.escape(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.escape(item) for item in value]
        if not isinstance(value, str):
            return value
        return self._token_pattern.sub(lambda match: self._placeholders[match.group()], value)

    def unescape(self, text: str) -> str:
        """Return `text` with the control tokens in place of their placeholders."""
        if self._placeholder_pattern is None:
            return text
        return self._placeholder_pattern.sub(lambda match: self._tokens[match.group()], text)

    def placeholder_spans(self, text: str) -> Iterator[CharSpan]:
        """Yield the spans of the control tokens that a user typed."""
        return _spans(self._placeholder_pattern, text)

    def control_token_spans(self, text: str) -> Iterator[CharSpan]:
        """Yield the spans of the control tokens that the template wrote."""
        return _spans(self._token_pattern, text)


def _alternation(words: Iterable[str]) -> re.Pattern[str] | None:
    alternatives = "|".join(map(re.escape, words))
    return re.compile(alternatives) if alternatives else None


def _spans(pattern: re.Pattern[str] | None, text: str) -> Iterator[CharSpan]:
    if pattern is not None:
        for match in pattern.finditer(text):
            yield match.span()
