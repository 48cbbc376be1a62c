"""Shingles of texts: n-grams of words, or of characters in scripts without spaces.

A word, and a character of a script without spaces, is called a unit.
"""

import re
import unicodedata
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"  # Japanese, Chinese
)
_UNIT = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
_IS_CHARACTER = re.compile(f"[{_UNSPACED}]")

SHINGLE_WORDS = 3
"""Number of words in a shingle."""
SHINGLE_CHARACTERS = 5
"""Number of units in a shingle that begins with a character of a script without spaces."""

_CHARACTER_FLAG = 1 << 32
_MAX_CACHED_CODES = 200_000


@lru_cache(maxsize=64)
def units(text: str) -> tuple[str, ...]:
    """Return the units of a text in lower case and NFKC, without punctuation."""
    return tuple(_UNIT.findall(unicodedata.normalize("NFKC", text).lower()))


@lru_cache(maxsize=64)
def unit_codes(text: str) -> NDArray[np.uint64]:
    """Return a hash of each unit of a text, shape (units,); bit 32 marks single characters.

    Equal units have equal hashes in every process and on every machine.
    """
    text_units = units(text)
    if len(_codes) > _MAX_CACHED_CODES:
        _codes.clear()
    return np.fromiter(map(_codes.__getitem__, text_units), np.uint64, len(text_units))


class _Codes(dict[str, int]):
    """Unit -> its CRC-32, with bit 32 set if it is a single character."""

    def __missing__(self, unit: str) -> int:
        flag = _CHARACTER_FLAG if _IS_CHARACTER.match(unit) else 0
        code = self[unit] = zlib.crc32(unit.encode()) | flag
        return code


_codes = _Codes()


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Return the shingles of a text; a text shorter than one shingle is one shingle."""
    text_units = units(text)
    is_character = (unit_codes(text) >= _CHARACTER_FLAG).tolist()
    runs = [
        text_units[start : start + (SHINGLE_CHARACTERS if is_character[start] else SHINGLE_WORDS)]
        for start in range(len(text_units))
    ]
    # Shingles cut off by the end of the text are left out.
    for start in range(max(0, len(text_units) - SHINGLE_CHARACTERS), len(text_units)):
        if len(runs[start]) < (SHINGLE_CHARACTERS if is_character[start] else SHINGLE_WORDS):
            runs[start] = ()
    found = frozenset(runs) - {()}
    return found or frozenset([text_units] if text_units else [])


def shingle_hashes(text: str, seed: int = 0) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each shingle, in order of the text, repeated where it repeats."""
    codes = unit_codes(text)
    if not len(codes):
        return codes
    flagged = codes >= _CHARACTER_FLAG
    words = ngram_hashes(codes, SHINGLE_WORDS)
    characters = ngram_hashes(codes, SHINGLE_CHARACTERS)
    found = np.concatenate((characters[flagged[: len(characters)]], words[~flagged[: len(words)]]))
    if not len(found):
        found = ngram_hashes(codes, len(codes))
    return splitmix64(found + np.uint64(seed))


def ngram_hashes(codes: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Return a hash of every n-gram of codes, shape (max(0, len - width + 1),).

    About 1 pair of different n-grams in 2^64 has the same hash. The bits are not well mixed.
    """
    count = max(0, len(codes) - width + 1)
    total = np.full(count, width, np.uint64)
    for offset in range(width):
        # A polynomial modulo 2^64; the wrapping multiplication is intended.
        total *= _BASE
        total += codes[offset : offset + count]
    return total


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of hashes by the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_BASE = np.uint64(0x9E3779B97F4A7C15)
