"""How the spelling of a control token that a person wrote stays text."""

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

CharSpan = tuple[int, int]
"""Half-open, in characters."""

# Private-use characters, which no template gives a meaning, from a place that nobody can guess.
_FIRST_MARK = 0x100000 + secrets.randbelow(0xC000)


class ControlTokenEscaper:
    """Marks in place of control tokens' spellings, as long as these: no position ever moves.

    Where the marks are, a template sees no control token and the tokenizer is told of none.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        longest_first = sorted(set(control_tokens), key=lambda token: (-len(token), token))
        self._marks = {
            token: chr(_FIRST_MARK + number) * len(token)
            for number, token in enumerate(longest_first)
        }
        self._spellings = {mark: token for token, mark in self._marks.items()}
        self._tokens_pattern = _any_of(self._marks)
        self._marks_pattern = _any_of(self._spellings)

    def escape(self, value: Any) -> Any:
        """Return a copy of JSON-like data with a mark for every control token spelt in it."""
        if self._tokens_pattern is None:
            return value
        if isinstance(value, dict):
            return {key: self.escape(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.escape(item) for item in value]
        if not isinstance(value, str):
            return value
        return self._tokens_pattern.sub(lambda match: self._marks[match.group()], value)

    def unescape(self, text: str) -> str:
        """Return `text` with the spellings back in place of their marks."""
        if self._marks_pattern is None:
            return text
        return self._marks_pattern.sub(lambda match: self._spellings[match.group()], text)

    def marks(self, text: str) -> Iterator[CharSpan]:
        """Where a person spelt a control token."""
        return _spans(self._marks_pattern, text)

    def control_tokens(self, text: str) -> Iterator[CharSpan]:
        """Where the template wrote one."""
        return _spans(self._tokens_pattern, text)


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    alternatives = "|".join(map(re.escape, words))
    return re.compile(alternatives) if alternatives else None


def _spans(pattern: re.Pattern[str] | None, text: str) -> Iterator[CharSpan]:
    if pattern is not None:
        for match in pattern.finditer(text):
            yield match.span()
