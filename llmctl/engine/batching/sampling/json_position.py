"""Limits on JSON text beside its grammar: lengths of numbers, escapes and equal keys."""

import copy
import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_DIGITS = frozenset(b"0123456789+-.eE")
_NUMBER_START = frozenset(b"0123456789-")
_FREE_LENGTH = 17
"""Characters up to which a number without an exponent needs no check."""
_MAX_LENGTH = 24
_INT64 = 2**63 - 1
_INTEGER = re.compile(rb"-?(\d+)")
_EXPONENT = re.compile(rb"[eE]([+-]?\d+)$")

Mask = npt.NDArray[np.uint8]


class JsonVocabulary:
    """The tokens that `JsonPosition` has to look at."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.words = words
        self.numeric = _ids(words, lambda word: word[0] in _DIGITS)
        self.quotes = _ids(words, lambda word: b'"' in word)
        self.escapes = {
            pending: _ids(words, lambda word, p=pending: _has_long_escape(word, p))
            for pending in (False, True)
        }


class JsonPosition:
    """Position in JSON text: the open containers with their keys, the string, the number."""

    def __init__(self, *, unique_items: bool = False) -> None:
        self._unique_items = unique_items
        self._open: tuple[frozenset[bytes] | None, ...] = ()
        """Keys of each open object, items of each array without equal ones; `None` for others."""
        self._at_key = False
        """Whether the current or next string is a key or such an item."""
        self._string: bytes | None = None
        self._escaped = False
        self._number = b""

    def feed(self, text: bytes) -> bool:
        """Advance; return whether no key or item is a second one where that is forbidden."""
        unique = True
        for at in range(len(text)):
            byte = text[at : at + 1]
            if self._string is not None:
                unique &= self._feed_string(byte)
                continue
            if byte[0] in (_DIGITS if self._number else _NUMBER_START):
                self._number += byte
                # It equals 0, and as an integer cannot be continued.
                unique &= not (self._at_key and self._number == b"-0")
                continue
            if self._number and self._at_key:
                unique &= self._add(b"#%d" % int(self._number))
            self._number = b""
            match byte:
                case b'"':
                    self._string = b""
                case b"{":
                    self._open, self._at_key = (*self._open, frozenset()), True
                case b"[":
                    items = frozenset[bytes]() if self._unique_items else None
                    self._open, self._at_key = (*self._open, items), self._unique_items
                case b"}" | b"]":
                    self._open, self._at_key = self._open[:-1], False
                case b",":
                    self._at_key = bool(self._open) and self._open[-1] is not None
                case b":":
                    self._at_key = False
        return unique

    def _feed_string(self, byte: bytes) -> bool:
        text = self._string or b""
        if byte != b'"' or self._escaped:
            self._escaped = byte == b"\\" and not self._escaped
            # The texts of values are not needed.
            self._string = text + byte if self._at_key else text
            return True
        self._string = None
        return self._add(b'"' + text) if self._at_key else True

    def _add(self, entry: bytes) -> bool:
        """Add a key or item to the innermost container; return whether it is the first one."""
        entries = self._open[-1] if self._open else None
        if entries is None:
            return True
        self._open = (*self._open[:-1], entries | {entry})
        return entry not in entries

    def restrict(self, allowed: Mask, vocabulary: JsonVocabulary) -> None:
        """Set to 0 what would exceed the limits, in place, unless nothing would be left.

        Numbers stay readable as int64 or double, control characters have short escapes only, and no
        key occurs twice in an object.

        Args:
            allowed: (vocab,), 1 for tokens that may come next.
        """
        drop: list[int] = []
        if self._string is None and self._number:
            if self._at_key:
                ids = np.flatnonzero(allowed).tolist()
                drop = [i for i in ids if not copy.copy(self).feed(vocabulary.words[i])]
            if len(self._number) >= _FREE_LENGTH or b"e" in self._number.lower():
                drop += [
                    i for i in _of(allowed, vocabulary.numeric) if not self._fits(vocabulary, i)
                ]
        elif self._at_key and self._open and self._open[-1]:
            ids = _of(allowed, vocabulary.quotes)
            if self._unique_items:
                ids += _of(allowed, vocabulary.numeric)
            drop = [i for i in ids if not copy.copy(self).feed(vocabulary.words[i])]
        _remove(allowed, drop)
        _remove(allowed, vocabulary.escapes[self._escaped])

    def _fits(self, vocabulary: JsonVocabulary, token: int) -> bool:
        word = vocabulary.words[token]
        end = next((at for at, byte in enumerate(word) if byte not in _DIGITS), len(word))
        number = self._number + word[:end]
        integer = _INTEGER.match(number)
        # A sign, point or exponent needs a digit after it.
        length = len(number) if number[-1:].isdigit() else len(number) + 2
        if length > _MAX_LENGTH or (integer and int(integer[1]) > _INT64):
            return False
        exponent = _EXPONENT.search(number)
        return exponent is None or (abs(int(exponent[1])) <= 308 and math.isfinite(float(number)))


def _ids(words: Sequence[bytes], holds: object) -> npt.NDArray[np.int64]:
    assert callable(holds)
    return np.array([i for i, word in enumerate(words) if word and holds(word)], dtype=np.int64)


def _has_long_escape(word: bytes, pending: bool) -> bool:
    r"""Return whether a token has `\u` or `\/`, after a backslash if `pending`."""
    if not pending and b"\\" not in word:
        return False
    for byte in word:
        if pending and byte in b"u/":
            return True
        pending = byte == ord("\\") and not pending
    return False


def _of(allowed: Mask, ids: npt.NDArray[np.int64]) -> list[int]:
    found: list[int] = ids[allowed[ids] != 0].tolist()
    return found


def _remove(allowed: Mask, ids: Sequence[int] | npt.NDArray[np.int64]) -> None:
    kept = allowed.copy()
    kept[np.asarray(ids, dtype=np.int64)] = 0
    if kept.any():
        allowed[:] = kept
