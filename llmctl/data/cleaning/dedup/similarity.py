"""When do two rows say the same, and when nearly the same?"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Set
from dataclasses import dataclass

from llmctl.data.cleaning.dedup.shingles import shingles, units
from llmctl.types import Example, Message

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def row_digest(example: Example) -> bytes:
    """Return 16 bytes that are equal for rows that are equal but for case, width and space."""
    sides = [
        [_said(message) for message in example.messages],
        [_said(message) for message in example.rejected],
    ]
    tools = [[tool.name, tool.description, tool.parameters] for tool in example.tools]
    return _digest([sides, tools, example.masked, _normal(example.text or "")], 16)


@dataclass(frozen=True, slots=True)
class RowParts:
    """A row as near duplicates are looked for: each part must be alike by itself."""

    prompt: str
    """What the user said."""
    answer: str
    """What the assistant and the tools said, or the plain text."""
    rejected: str
    lines: tuple[str, ...]
    """Of the user's last message, where the question is."""
    rest: bytes
    """Digest of what must be equal: system prompt, tools, which turns are learnt, and all numbers
    unless they are ignored."""


def row_parts(example: Example, *, ignore_numbers: bool) -> RowParts:
    """Take a row apart for comparing."""
    asked = [m.content for m in example.messages if m.role == "user"]
    said = [_words_of(m) for m in example.messages if m.role in ("assistant", "tool")]
    if example.text is not None:
        said = [example.text]
    rejected = "\n".join(map(_words_of, example.rejected))
    prompt, answer = "\n".join(asked), "\n".join(said)
    lines = tuple(filter(str.strip, asked[-1].split("\n"))) if asked else ()
    system = [m.content for m in example.messages if m.role in ("system", "developer")]
    tools = [tool.name for tool in example.tools]
    numbers = [] if ignore_numbers else [_numbers(text) for text in (prompt, answer, rejected)]
    rest = _digest([list(map(_normal, system)), tools, example.masked, numbers], 8)
    return RowParts(prompt, answer, rejected, lines, rest)


class ComparableRow:
    """A row that can be compared with others exactly."""

    def __init__(self, of: RowParts) -> None:
        self._of = of
        self._shingles = [shingles(part) for part in (of.prompt, of.answer, of.rejected)]

    def likeness(self, other: "ComparableRow", at_least: float) -> float | None:
        """Return the least Jaccard similarity of all parts; `None` if the rows are not alike.

        Alike are rows that are equal in what must be equal, and of which prompt and answers by
        their shingles, and the lines of the last question by their words, have a similarity of at
        least `at_least`.
        """
        one, two = self._of, other._of
        if one.rest != two.rest:
            return None
        # A question may be one line among many, and with another question it is another row.
        lines, others = one.lines, two.lines
        if len(lines) != len(others):
            lines, others = lines[:1] + lines[-1:], others[:1] + others[-1:]
        found = [
            jaccard(set(units(mine)), set(units(theirs)))
            for mine, theirs in zip(lines, others, strict=False)
        ]
        found += [
            jaccard(mine, theirs)
            for mine, theirs in zip(self._shingles, other._shingles, strict=True)
        ]
        least = min(found)
        return least if least >= at_least else None


def jaccard(one: Set[object], other: Set[object]) -> float:
    """Return the share of all elements that both sets have; 1 of two empty ones."""
    shared = len(one & other)
    total = len(one) + len(other) - shared
    return shared / total if total else 1.0


def _said(message: Message) -> list[object]:
    calls = [[call.name, _normal(call.arguments)] for call in message.tool_calls]
    return [message.role, _normal(message.content), _normal(message.reasoning or ""), calls]


def _words_of(message: Message) -> str:
    calls = (f"{call.name} {call.arguments}" for call in message.tool_calls)
    return "\n".join(filter(None, (message.content, message.reasoning, *calls)))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _numbers(text: str) -> list[str]:
    return sorted(_NUMBER.findall(unicodedata.normalize("NFKC", text)))


def _digest(value: object, size: int) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
