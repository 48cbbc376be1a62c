"""The language of a text, by its script first, then by a small model."""

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.rules.code_blocks import prose_text
from llmctl.data.cleaning.rules.rule import Finding, RowView
from llmctl.data.cleaning.settings import Language
from llmctl.errors import ConfigError

UNKNOWN_LANGUAGE = "?"
_SAMPLE = 2000
"""Number of characters of a text that are examined."""
_MIN_LETTERS = 20
"""With fewer letters of a script shared by several languages, the language stays unknown."""

SCRIPTS = (
    (UNKNOWN_LANGUAGE, ()),
    ("latin", ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF))),
    ("zh", ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))),
    ("ja", ((0x3040, 0x30FF),)),
    ("ko", ((0x1100, 0x11FF), (0xAC00, 0xD7AF))),
    ("cyrillic", ((0x400, 0x52F),)),
    ("arabic", ((0x600, 0x6FF), (0x750, 0x77F))),
    ("greek", ((0x370, 0x3FF),)),
    ("hebrew", ((0x590, 0x5FF),)),
    ("thai", ((0xE00, 0xE7F),)),
    ("devanagari", ((0x900, 0x97F),)),
)
"""Name -> ranges of code points."""
_NAMES = tuple(name for name, _ in SCRIPTS)
_ONE_LANGUAGE = frozenset(("zh", "ja", "ko"))
_BY_SCRIPT = {"greek": "el", "hebrew": "he", "thai": "th"}
_WEIGHTS = np.array([0, 1, 3, 3, 2, 1, 1, 1, 1, 1, 1], np.int64)
"""Weight of one character of each script, in Latin letters."""


@cache
def _table() -> NDArray[np.uint8]:
    table = np.zeros(0x110000, np.uint8)
    for index, (_, ranges) in enumerate(SCRIPTS):
        for first, last in ranges:
            table[first : last + 1] = index
    return table


def dominant_script(text: str) -> tuple[str, int]:
    """Return the script with the most weight in a text, and the number of its letters.

    Chinese, Japanese and Korean are distinguished by their letters and named by their language
    code, the others by the name of their script. `?` means a text without letters.
    """
    codes = np.frombuffer(text[:_SAMPLE].encode("utf-32-le"), "<u4")
    counts = np.bincount(_table()[codes], minlength=len(_NAMES))
    zh, ja = _NAMES.index("zh"), _NAMES.index("ja")
    if counts[ja] * 10 >= counts[zh]:  # Japanese has kana between its Chinese characters
        counts[ja] += counts[zh] if counts[ja] else 0
        counts[zh] = 0 if counts[ja] else counts[zh]
    weighted = counts * _WEIGHTS
    best = int(weighted.argmax())
    return (_NAMES[best], int(counts[best])) if weighted[best] else (UNKNOWN_LANGUAGE, 0)


@lru_cache(maxsize=8)
def detect_language(text: str, min_confidence: float) -> str:
    """Return the ISO 639-1 code of the language of a text, or `?` if it stays unknown."""
    name, letters = dominant_script(text)
    if name in _ONE_LANGUAGE or name == UNKNOWN_LANGUAGE:
        return name
    if name in _BY_SCRIPT:
        return _BY_SCRIPT[name]
    if letters < _MIN_LETTERS:
        return UNKNOWN_LANGUAGE
    found, confidence = _identifier().classify(text[:_SAMPLE])
    return str(found) if confidence >= min_confidence else UNKNOWN_LANGUAGE


def check_codes(codes: Iterable[str]) -> None:
    """Check that every code can be the result of `detect_language`.

    Raises:
        ConfigError: a code is wrong, or its language cannot be detected.
    """
    known = {*_ONE_LANGUAGE, *_BY_SCRIPT.values(), *_identifier().labels}
    for code in codes:
        if code not in known:
            raise ConfigError(
                f"language.keep: {code!r} is not the code of a detectable language",
                hint="two letters, such as zh, en, fr; known: " + ", ".join(sorted(known)),
            )


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class LanguageRule:
    """Checks the language of the training text, with the question if the answer is too short."""

    def __init__(self, settings: Language) -> None:
        self._settings = settings

    def check(self, row: RowView) -> Finding | None:
        found = self.of(row)
        if found == UNKNOWN_LANGUAGE or found in self._settings.keep:
            return None
        return Finding(f"written in {found}", (found,))

    def of(self, row: RowView) -> str:
        """Return the language code of a row, or `?`."""
        text = "\n".join(map(prose_text, row.answers))
        found = detect_language(text, self._settings.min_confidence)
        if found == UNKNOWN_LANGUAGE:
            question = prose_text(row.last_question)
            found = detect_language(f"{question}\n{text}", self._settings.min_confidence)
        return found
