"""How does text, Chinese or not, become lines of a terminal that has so many columns?"""

from itertools import pairwise

from rich.cells import get_character_cell_size

_NO_START = frozenset("，。、；：？！）】》〉」』”’…—～·,.;:?!)]}%％‰℃")
"""What may not begin a line (W3C, Requirements for Chinese Text Layout, section 3.1.6)."""
_NO_END = frozenset("（【《〈「『“‘([{")

# Escape sequences of a model would move the cursor, or worse: they are shown as pictures.
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {
    0x0D: None,
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def line_breaks(text: str, width: int) -> list[int]:
    """Return the offsets at which the lines after the first begin.

    Lines are broken after blanks, and between Chinese characters as their punctuation allows; what
    has no such place is broken where it reaches the edge. Blanks at the end of a line may stand
    beyond the edge: they are not seen.
    """
    offsets: list[int] = []
    begin = column = 0
    chance, chance_column = 0, 0
    for at, character in enumerate(text):
        if character == "\n":
            offsets.append(at + 1)
            begin, column, chance = at + 1, 0, at + 1
            continue
        size = get_character_cell_size(character)
        if at > begin and _may_break(text[at - 1], character):
            chance, chance_column = at, column
        if size and column + size > width and not character.isspace() and at > begin:
            if chance <= begin:
                chance, chance_column = at, column
            offsets.append(chance)
            begin, column = chance, column - chance_column
        column += size
    return offsets


def _may_break(before: str, after: str) -> bool:
    if after.isspace():
        return False
    if before.isspace():
        return True
    if after in _NO_START or before in _NO_END or not get_character_cell_size(after):
        return False
    return get_character_cell_size(before) == 2 or get_character_cell_size(after) == 2


def wrap_text(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` columns."""
    text = text.expandtabs(4)
    cuts = [0, *line_breaks(text, max(width, 2)), len(text)]
    return [text[a:b].rstrip() for a, b in pairwise(cuts)]


def escape_control_characters(text: str) -> str:
    """Return a text without anything that a terminal would obey."""
    return text.translate(_VISIBLE)
