"""Fenced code blocks and the prose between them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^[ \t]*(?P<marks>`{3,}|~{3,})(?P<info>[^\n]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A segment of a text, code or prose; joined segments are the text."""

    text: str
    is_code: bool
    closed: bool = True
    """False only for a code block without a closing fence; it reaches to the end of the text."""


def split_code_blocks(text: str) -> Iterator[TextSegment]:
    """Split a text where fenced code begins and ends (CommonMark 0.31, section 4.5).

    Fences may be indented by any width, as in lists. The line breaks before the opening fence and
    after the closing one belong to the prose.
    """
    if "```" not in text and "~~~" not in text:
        yield TextSegment(text, is_code=False)
        return
    position = 0
    start: int | None = None
    opening = ""
    for fence in _FENCE.finditer(text):
        marks, info = fence["marks"], fence["info"].strip()
        if start is None:
            # A backtick in the info string makes it inline code: ```like this```.
            if marks[0] == "`" and "`" in info:
                continue
            yield TextSegment(text[position : fence.start()], is_code=False)
            start, opening = fence.start(), marks
        elif marks[0] == opening[0] and len(marks) >= len(opening) and not info:
            yield TextSegment(text[start : fence.end()], is_code=True)
            position, start = fence.end(), None
    if start is None:
        yield TextSegment(text[position:], is_code=False)
    else:
        yield TextSegment(text[start:], is_code=True, closed=False)


def map_prose(change: Callable[[str], str], text: str) -> str:
    """Change the prose of a text, and leave its code blocks."""
    return "".join(
        block.text if block.is_code else change(block.text) for block in split_code_blocks(text)
    )


def prose_text(text: str) -> str:
    """Return the prose of a text, without its code blocks."""
    return "".join(block.text for block in split_code_blocks(text) if not block.is_code)


def has_open_block(text: str) -> bool:
    """Whether a code block has no closing fence."""
    return any(not block.closed for block in split_code_blocks(text))
