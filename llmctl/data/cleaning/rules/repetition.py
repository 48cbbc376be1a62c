"""Does an answer go round in circles?

After the repetition filters of Rae et al. 2021 (Gopher), section A1.1, which were made for web
pages. Lists, poems and tables repeat themselves with good reason, so the thresholds are wider, and
code is not counted.
"""

from collections import Counter

import numpy as np

from llmctl.data.cleaning.dedup.shingles import ngram_hashes, unit_codes
from llmctl.data.cleaning.rules.code_blocks import prose_text
from llmctl.data.cleaning.rules.rule import Finding, RowView
from llmctl.data.cleaning.settings import Repetition

NGRAM = 10
_LINES = 6
"""Fewer lines than this may repeat: a chorus, a form."""


class RepetitionRule:
    def __init__(self, settings: Repetition) -> None:
        self._settings = settings

    def look(self, row: RowView) -> Finding | None:
        for answer in row.answers:
            text = prose_text(answer) if "```" in answer or "~~~" in answer else answer
            share = repeated_ngram_share(text, self._settings.min_units)
            if share > self._settings.max_share:
                return Finding(f"{share:.0%} of an answer lies in repeated {NGRAM}-grams")
            share = repeated_line_share(text)
            if share > self._settings.max_line_share:
                return Finding(f"{share:.0%} of an answer lies in repeated lines")
        return None


def repeated_ngram_share(text: str, min_units: int) -> float:
    """Return the share of units that lie in a 10-gram which the text had before.

    Units are words, and characters of scripts without spaces. The first time does not count: a
    text that says everything twice has a share of one half.
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
    # Every unit that any repeated gram covers, by counting where covers begin and end.
    edges = np.zeros(len(of) + 1, np.int32)
    edges[: len(grams)] += is_repeat
    edges[NGRAM : NGRAM + len(grams)] -= is_repeat
    return float((np.cumsum(edges[:-1]) > 0).mean())


def repeated_line_share(text: str) -> float:
    """Return the share of characters that lie in lines which the text had before."""
    lines = [line.strip() for line in text.split("\n")]
    # Rules and borders of tables are lines too, but they say nothing.
    counts = Counter(line for line in lines if any(map(str.isalnum, line)))
    if counts.total() < _LINES:
        return 0.0
    total = sum(len(line) * count for line, count in counts.items())
    return sum(len(line) * (count - 1) for line, count in counts.items()) / total
