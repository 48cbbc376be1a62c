"""What did a person mean by what they typed or pasted: a command, a question, or not done yet?"""

import re
from collections.abc import Collection
from dataclasses import dataclass

BLOCK = '"""'
_COMMAND = re.compile(r"/([^\s/]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command."""

    name: str
    argument: str = ""


def is_block_open(text: str) -> bool:
    """Whether a block in three quotes has begun and not ended, so that Enter is only a new line."""
    _, begun, rest = text.partition(BLOCK)
    return bool(begun) and _may_begin_block(text) and BLOCK not in rest


def parse_input(text: str, *, pasted: bool, known: Collection[str]) -> Command | str:
    """Return the command that a text is, or the question.

    A text that begins with a blank or with two slashes is a question whatever follows, and so is
    what has another slash in its first word, as a path has. What was pasted is a question, unless
    it is one line with a command that there is.
    """
    if text[:1].isspace():
        return _unquoted(text.strip())
    if text.startswith("//"):
        return text[1:].strip()
    found = _COMMAND.fullmatch(text.strip())
    if found is None:
        return _unquoted(text.strip())
    name, argument = found.group(1).lower(), (found.group(2) or "").strip()
    if pasted and (name not in known or "\n" in text.strip()):
        return text.strip()
    return Command(name, _unquoted(argument))


def _may_begin_block(text: str) -> bool:
    before = text.partition(BLOCK)[0].strip()
    return not before or bool(re.fullmatch(r"/[^\s/]+", before))


def _unquoted(text: str) -> str:
    """Take the three quotes away that hold a block together."""
    whole = text.startswith(BLOCK) and text.endswith(BLOCK) and len(text) >= 2 * len(BLOCK)
    return text[len(BLOCK) : -len(BLOCK)].strip("\n") if whole else text
