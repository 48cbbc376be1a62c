"""The rule on repetition in answers.

After the repetition filters of Rae et al. 2021 (Gopher), section A1.1, which are for web pages.
Lists, poems and tables repeat themselves legitimately, so the thresholds are wider, and code is not
counted.
"""

from collections import Counter

import numpy as np

from llmctl.data.cleaning.dedup.shingles import ngram_hashes, unit_codes
from llmctl.data.cleaning.rules.code_blocks import prose_text
from llmctl.data.cleaning.rules.rule import Finding, RowView
from llmctl.data.cleaning.settings import Repetition

NGRAM = 10
_MIN_LINES = 6
"""Shorter texts may repeat lines: a chorus, a form."""


class RepetitionRule:
    def __init__(self, settings: Repetition) -> None:
        self._settings = settings

    def check(self, row: RowView) -> Finding | None:
        for answer in row.answers:
            text = prose_text(answer) if "```" in answer or "~~~" in answer else answer
            share = repeated_ngram_share(text, self._settings.min_units)
            if share > self._settings.max_share:
                return Finding(f"{share:.0%} of an answer is in repeated {NGRAM}-grams")
            share = repeated_line_share(text)
            if share > self._settings.max_line_share:
                return Finding(f"{share:.0%} of an answer is in repeated lines")
        return None


def repeated_ngram_share(text: str, min_units: int) -> float:
    """Return the share of units in repeated 10-grams; 0 for a text shorter than `min_units`.

    Units are words, and characters of scripts without spaces. The first occurrence does not count:
    a text that repeats itself once has a share of one half.
    """
    of = unit_codes(text)
    if len(of) < max(min_units, NGRAM + 1):
        return 0.0
    grams = ngram_hashes(of, NGRAM)
    _, first = np.unique(grams, return_index=True)
    if len(first) == len(grams):
        return 0.0
    is_repeat = np.ones(len(grams), bool)
    is_repeat[first] = False
    # Units covered by any repeated n-gram, by the prefix sum of begins and ends.
    edges = np.zeros(len(of) + 1, np.int32)
    edges[: len(grams)] += is_repeat
    edges[NGRAM : NGRAM + len(grams)] -= is_repeat
    return float((np.cumsum(edges[:-1]) > 0).mean())


def repeated_line_share(text: str) -> float:
    """Return the share of characters in repeated lines; the first occurrence does not count."""
    lines = [line.strip() for line in text.split("\n")]
    # Horizontal rules and table borders are not counted.
    counts = Counter(line for line in lines if any(map(str.isalnum, line)))
    if counts.total() < _MIN_LINES:
        return 0.0
    total = sum(len(line) * count for line, count in counts.items())
    return sum(len(line) * (count - 1) for line, count in counts.items()) / total
