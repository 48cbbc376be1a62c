"""Prompt-lookup decoding: draft tokens of a greedy reply from earlier text.

Replies repeat their prompt: names, code, quotations. Where the last n-gram occurred before, the
tokens that followed it are computed in one forward pass and kept as far as greedy decoding gives
the same, so the text does not change (Saxena 2023, "Prompt Lookup Decoding").
"""

from collections.abc import Sequence

DRAFT_TOKENS = 6
"""Tokens of a draft. A step over a few more tokens takes little longer than over one, since both
read every weight once."""
_NGRAM = 3
_MAX_MISSES = 4
"""Drafts in a row without an accepted token after which drafting pauses."""
_PAUSE_TOKENS = 48


class PromptLookup:
    """N-gram index of the tokens of one sequence."""

    def __init__(self) -> None:
        self._next_index: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._misses = 0
        self._pause_until = 0

    def propose(self, token_ids: Sequence[int]) -> list[int]:
        """Return draft tokens to follow `token_ids`; may be empty.

        Args:
            token_ids: the whole sequence; between calls it only grows.
        """
        end = len(token_ids)
        # The last n-gram is not followed by a token yet; it is indexed at the next call.
        for at in range(self._indexed, end - _NGRAM):
            self._next_index[tuple(token_ids[at : at + _NGRAM])] = at + _NGRAM
        self._indexed = max(end - _NGRAM, 0)
        if end < self._pause_until:
            return []
        found = self._next_index.get(tuple(token_ids[-_NGRAM:]))
        return [] if found is None else list(token_ids[found : found + DRAFT_TOKENS])

    def record_result(self, accepted: int, length: int) -> None:
        """Record how many tokens of the last draft were accepted, and the sequence length now."""
        self._misses = 0 if accepted else self._misses + 1
        if self._misses >= _MAX_MISSES:
            self._misses = 0
            self._pause_until = length + _PAUSE_TOKENS
