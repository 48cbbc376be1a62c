"""Repair of damaged characters and white space. Code blocks are left unchanged."""

import re
import unicodedata
from functools import cache

from llmctl.data.cleaning.rules.code_blocks import map_prose, split_code_blocks

# Scripts that use joiners: Arabic, Syriac, N'Ko, Mongolian, and those of South and Southeast Asia.
_JOINING = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
# Scripts without spaces, where a zero-width space marks the end of a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf"
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff]")
_EMOJI = "\u00a9\u00ae\u203c-\u3299\ufe0f\U0001f000-\U0001faff"
_BIDI = "\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffc\ufffe\uffff\U000e0000-\U000e007f]"
)
_ESCAPE_SEQUENCE = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")
_PAGE_BREAK = re.compile("[\x0b\x0c]")
_NEVER = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u180e\u2060-\u2065\u206a-\u206f\ufdd0-\ufdef"
    "\ufeff\ufff9-\ufffc\ufffe\uffff]"
    f"|(?<![{_UNSPACED}])\u200b(?![{_UNSPACED}])"
    f"|(?<![{_JOINING}])\u200c"
    f"|(?<![{_JOINING}])(?:(?<![{_EMOJI}])\u200d|\u200d(?![{_EMOJI}]))"
    # Tags encode a region after a black flag, and are invisible elsewhere.
    "|(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+"
)
_LIGATURES = {
    0xFB00 + i: text for i, text in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))
}

_MARKS = ":;!?»%\u203a"
_HARD_SPACE = re.compile(f"(?<![\\d«\u2039])\u00a0(?![{_MARKS}])|(?<=\\d)\u00a0(?![\\d{_MARKS}])")
_LINE_BREAK = re.compile("\r\n?|[\x85\u2028\u2029]")
_TRAILING = re.compile(r"(?<=[^ \t\n])[ \t]+(?=\n)|(?<=\n)[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{4,}")
_LEADING_LINES = re.compile(r"(?:[ \t]*\n)+")


@cache
def _may_be_misread() -> re.Pattern[str]:
    """Match the lead byte of a multi-byte UTF-8 sequence decoded in another encoding."""
    from ftfy.chardata import CHARMAP_ENCODINGS

    starts = bytes(range(0xC2, 0xF5))
    seen = {char for name in CHARMAP_ENCODINGS for char in starts.decode(name, "ignore")}
    return re.compile(f"[\x80-\x9f{re.escape(''.join(sorted(seen)))}]")


def repair_unicode(text: str) -> str:
    """Repair wrongly decoded UTF-8 (`schÃ¶n`) and PDF ligatures; compose characters (NFC).

    Quotes and the width of characters stay: full-width punctuation is correct in Chinese.
    """
    if text.isascii():
        return text
    return map_prose(_repair_prose, text)


def _repair_prose(text: str) -> str:
    if _may_be_misread().search(text):
        import ftfy

        # Line by line: parts of a text may have been decoded in different ways.
        text = "".join(ftfy.fix_encoding(line) for line in text.splitlines(keepends=True))
    if re.search("[\ufb00-\ufb06]", text):
        text = text.translate(_LIGATURES)
    return unicodedata.normalize("NFC", text)


def remove_controls(text: str) -> str:
    """Remove invisible characters: control codes, terminal colours, byte order marks, tags.

    Joiners stay in emoji and in scripts that use them, zero-width spaces in scripts without spaces,
    direction marks in texts with right-to-left letters.
    """
    if not _INVISIBLE.search(text):
        return text
    keeps_direction = _RIGHT_TO_LEFT.search(text) is not None

    def remove(prose: str) -> str:
        prose = _PAGE_BREAK.sub("\n", _ESCAPE_SEQUENCE.sub("", prose))
        prose = _NEVER.sub("", prose)
        return prose if keeps_direction else re.sub(f"[{_BIDI}]", "", prose)

    return map_prose(remove, text)


def tidy_whitespace(text: str, *, ends: bool) -> str:
    """Remove spaces at line ends, more than two blank lines in a row, and unusual line breaks.

    Indentation, spaces within lines, ideographic spaces and the two spaces of a Markdown line break
    stay. `\\r\\n` becomes `\\n` in code too.

    Args:
        ends: also remove blank lines before the text and all space after it.
    """
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    text = map_prose(_tidy_prose, text)
    if not ends:
        return text
    *_, last = split_code_blocks(text)
    if not last.is_code:
        text = text.rstrip()
    return text[found.end() :] if (found := _LEADING_LINES.match(text)) else text


def _tidy_prose(text: str) -> str:
    # Substring search for single characters is much faster than a pattern with several.
    if any(mark in text for mark in "\r\x85\u2028\u2029"):
        text = _LINE_BREAK.sub("\n", text)
    if "\u00a0" in text:
        text = _HARD_SPACE.sub(" ", text)
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub(_line_end, text)
    return _BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text


def _line_end(spaces: re.Match[str]) -> str:
    before = spaces.string[spaces.start() - 1]
    return "  " if spaces.group() == "  " and before != "\n" else ""
