"""Guesses the next tokens of a greedy reply from what was said before: prompt-lookup decoding.

Replies repeat their prompt: names, code, quotations. Where the last tokens occurred before, what
followed them then is tried as a whole in one forward pass, and kept as far as the model agrees, so
the text is the same as without (Saxena 2023, "Prompt Lookup Decoding").
"""

from collections.abc import Sequence

DRAFT_TOKENS = 6
"""Tokens guessed at once. A step over a few more tokens takes little longer than over one, since
both read every weight once."""
_NGRAM = 3
_PATIENCE = 4
"""Guesses in a row that may all be wrong before guessing pauses."""
_PAUSE_TOKENS = 48


class PromptLookup:
    """What one sequence knows of its own past."""

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._misses = 0
        self._pause_until = 0

    def guess(self, token_ids: Sequence[int]) -> list[int]:
        """Return what may come after `token_ids`, or nothing.

        Args:
            token_ids: the whole sequence; between calls it only grows.
        """
        end = len(token_ids)
        # The n-gram that ends the sequence has nothing after it yet, so it is indexed next time.
        for at in range(self._indexed, end - _NGRAM):
            self._followed[tuple(token_ids[at : at + _NGRAM])] = at + _NGRAM
        self._indexed = max(end - _NGRAM, 0)
        if end < self._pause_until:
            return []
        found = self._followed.get(tuple(token_ids[-_NGRAM:]))
        return [] if found is None else list(token_ids[found : found + DRAFT_TOKENS])

    def learn(self, accepted: int, length: int) -> None:
        """Note how many of the last guess were right, and how long the sequence is now."""
        self._misses = 0 if accepted else self._misses + 1
        if self._misses >= _PATIENCE:
            self._misses = 0
            self._pause_until = length + _PAUSE_TOKENS
