"""Equality and similarity of rows."""

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
    """Return a digest of 16 bytes that ignores case, character width and white space."""
    sides = [
        [_message_key(message) for message in example.messages],
        [_message_key(message) for message in example.rejected],
    ]
    tools = [[tool.name, tool.description, tool.parameters] for tool in example.tools]
    return _digest([sides, tools, example.masked, _normal(example.text or "")], 16)


@dataclass(frozen=True, slots=True)
class RowParts:
    """The parts of a row for near-duplicate search; each part must be similar by itself."""

    prompt: str
    """Texts of the user."""
    answer: str
    """Texts of the assistant and the tools, or the plain text."""
    rejected: str
    lines: tuple[str, ...]
    """Lines of the user's last message, which holds the question."""
    exact: bytes
    """Digest of the parts that must be equal: system prompt, tools, loss mask of the turns, and all
    numbers unless they are ignored."""


def row_parts(example: Example, *, ignore_numbers: bool) -> RowParts:
    """Split a row into the parts that are compared."""
    user = [m.content for m in example.messages if m.role == "user"]
    answers = [_message_text(m) for m in example.messages if m.role in ("assistant", "tool")]
    if example.text is not None:
        answers = [example.text]
    rejected = "\n".join(map(_message_text, example.rejected))
    prompt, answer = "\n".join(user), "\n".join(answers)
    lines = tuple(filter(str.strip, user[-1].split("\n"))) if user else ()
    system = [m.content for m in example.messages if m.role in ("system", "developer")]
    tools = [tool.name for tool in example.tools]
    numbers = [] if ignore_numbers else [_numbers(text) for text in (prompt, answer, rejected)]
    exact = _digest([list(map(_normal, system)), tools, example.masked, numbers], 8)
    return RowParts(prompt, answer, rejected, lines, exact)


class ComparableRow:
    """A row prepared for exact comparison with others."""

    def __init__(self, parts: RowParts) -> None:
        self._parts = parts
        self._shingles = [shingles(text) for text in (parts.prompt, parts.answer, parts.rejected)]

    def similarity(self, other: "ComparableRow", at_least: float) -> float | None:
        """Return the smallest Jaccard similarity of all parts; `None` below `at_least`.

        Prompt and answers are compared by their shingles, the lines of the last question by their
        units. `None` also if the parts that must be equal are not.
        """
        one, two = self._parts, other._parts
        if one.exact != two.exact:
            return None
        # The question may be one line among many: another question makes another row.
        lines, others = one.lines, two.lines
        if len(lines) != len(others):
            lines, others = lines[:1] + lines[-1:], others[:1] + others[-1:]
        similarities = [
            jaccard(set(units(mine)), set(units(theirs)))
            for mine, theirs in zip(lines, others, strict=False)
        ]
        similarities += [
            jaccard(mine, theirs)
            for mine, theirs in zip(self._shingles, other._shingles, strict=True)
        ]
        least = min(similarities)
        return least if least >= at_least else None


def jaccard(one: Set[object], other: Set[object]) -> float:
    """Return the Jaccard similarity of two sets; 1 for two empty ones."""
    shared = len(one & other)
    total = len(one) + len(other) - shared
    return shared / total if total else 1.0


def _message_key(message: Message) -> list[object]:
    calls = [[call.name, _normal(call.arguments)] for call in message.tool_calls]
    return [message.role, _normal(message.content), _normal(message.reasoning or ""), calls]


def _message_text(message: Message) -> str:
    calls = (f"{call.name} {call.arguments}" for call in message.tool_calls)
    return "\n".join(filter(None, (message.content, message.reasoning, *calls)))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _numbers(text: str) -> list[str]:
    return sorted(_NUMBER.findall(unicodedata.normalize("NFKC", text)))


def _digest(value: object, size: int) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()
