"""Which lines of a text are fenced code? Everything else is prose."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^[ \t]*(?P<marks>`{3,}|~{3,})(?P<info>[^\n]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A stretch of a text; the stretches of a text put together are the text."""

    text: str
    is_code: bool
    closed: bool = True
    """Only of code: its closing fence is there. An open block reaches to the end of the text."""


def split_code_blocks(text: str) -> Iterator[TextSegment]:
    """Cut a text where fenced code begins and ends (CommonMark 0.31, section 4.5).

    Fences may be indented by any width, as they are inside lists. The line breaks before the
    opening fence and after the closing one belong to the prose.
    """
    if "```" not in text and "~~~" not in text:
        yield TextSegment(text, is_code=False)
        return
    position = 0
    start: int | None = None
    marks = ""
    for fence in _FENCE.finditer(text):
        found, info = fence["marks"], fence["info"].strip()
        if start is None:
            # A backtick in the info string makes it inline code: ```like this```.
            if found[0] == "`" and "`" in info:
                continue
            yield TextSegment(text[position : fence.start()], is_code=False)
            start, marks = fence.start(), found
        elif found[0] == marks[0] and len(found) >= len(marks) and not info:
            yield TextSegment(text[start : fence.end()], is_code=True)
            position, start = fence.end(), None
    if start is None:
        yield TextSegment(text[position:], is_code=False)
    else:
        yield TextSegment(text[start:], is_code=True, closed=False)


def map_prose(change: Callable[[str], str], text: str) -> str:
    """Change what is no code."""
    return "".join(
        block.text if block.is_code else change(block.text) for block in split_code_blocks(text)
    )


def prose_text(text: str) -> str:
    """Return what is no code."""
    return "".join(block.text for block in split_code_blocks(text) if not block.is_code)


def has_open_block(text: str) -> bool:
    """Whether a code block begins and does not end."""
    return any(not block.closed for block in split_code_blocks(text))
