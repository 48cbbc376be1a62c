"""What is a text made of, for comparing? Words; in scripts without spaces, characters."""

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
"""Words of a shingle."""
SHINGLE_CHARACTERS = 5
"""Characters of a shingle that begins with a character of a script without spaces."""

_CHARACTER_FLAG = 1 << 32
_MOST_CODES = 200_000


@lru_cache(maxsize=64)
def units(text: str) -> tuple[str, ...]:
    """Return the words and characters of a text without case, width and punctuation."""
    return tuple(_UNIT.findall(unicodedata.normalize("NFKC", text).lower()))


@lru_cache(maxsize=64)
def unit_codes(text: str) -> NDArray[np.uint64]:
    """Return a number that stands for each unit of a text.

    Equal units have equal numbers in every process and on every machine.
    """
    of = units(text)
    if len(_codes) > _MOST_CODES:
        _codes.clear()
    return np.fromiter(map(_codes.__getitem__, of), np.uint64, len(of))


class _Codes(dict[str, int]):
    """Unit -> 32 bits that stand for it, and a flag above them if it is a single character."""

    def __missing__(self, unit: str) -> int:
        flag = _CHARACTER_FLAG if _IS_CHARACTER.match(unit) else 0
        code = self[unit] = zlib.crc32(unit.encode()) | flag
        return code


_codes = _Codes()


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Return every run of neighbouring units; a text shorter than one run is one shingle."""
    of = units(text)
    is_character = (unit_codes(text) >= _CHARACTER_FLAG).tolist()
    runs = [
        of[start : start + (SHINGLE_CHARACTERS if is_character[start] else SHINGLE_WORDS)]
        for start in range(len(of))
    ]
    # Runs that the end cuts off are none.
    for start in range(max(0, len(of) - SHINGLE_CHARACTERS), len(of)):
        if len(runs[start]) < (SHINGLE_CHARACTERS if is_character[start] else SHINGLE_WORDS):
            runs[start] = ()
    found = frozenset(runs) - {()}
    return found or frozenset([of] if of else [])


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
    """Return a number for every run of `width` codes, shape (max(0, len - width + 1),).

    Different runs have different numbers, but for 1 pair in 2^64 or so; the bits are not spread.
    """
    count = max(0, len(codes) - width + 1)
    total = np.full(count, width, np.uint64)
    for offset in range(width):
        # A polynomial modulo 2^64: the multiplication wraps, as it is meant to.
        total *= _BASE
        total += codes[offset : offset + count]
    return total


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all of a hash (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_BASE = np.uint64(0x9E3779B97F4A7C15)
