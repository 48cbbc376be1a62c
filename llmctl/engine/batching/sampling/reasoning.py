"""A grammar that begins after the model's reasoning."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from llmctl.engine.batching.sampling.grammar import GrammarMatcher
from llmctl.engine.chat.response_delta import ReasoningTokens


class ReasoningMatcher:
    """Position of one sequence in its reasoning, and then in a grammar.

    A model that opens its reasoning itself may do so, or write the restricted text at once. The
    reasoning is free, but cannot end the response.

    Args:
        matcher: of the grammar.
        tokens: the marks around the reasoning.
        end_ids: tokens that end a response.
    """

    def __init__(
        self, matcher: GrammarMatcher, tokens: ReasoningTokens, end_ids: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._end_ids = list(end_ids)
        self._state: Literal["start", "reasoning", "grammar"] = (
            "reasoning" if tokens.opened else "start"
        )

    @property
    def finished(self) -> bool:
        """Whether only the end can follow."""
        return self._state == "grammar" and self._matcher.finished

    def prefetch_mask(self) -> None:
        """See `GrammarMatcher.prefetch_mask`."""
        if self._state == "grammar":
            self._matcher.prefetch_mask()

    def apply(self, logits: Tensor) -> None:
        """See `GrammarMatcher.apply`."""
        if self._state == "reasoning":
            logits[self._end_ids] = -math.inf
            return
        opening = logits[self._tokens.open_id].clone()
        self._matcher.apply(logits)
        if self._state == "start":
            logits[self._tokens.open_id] = opening

    def accept(self, token_id: int) -> None:
        """See `GrammarMatcher.accept`."""
        if self._state == "reasoning":
            if token_id == self._tokens.close_id:
                self._state = "grammar"
        elif self._state == "start" and token_id == self._tokens.open_id:
            self._state = "reasoning"
        else:
            self._state = "grammar"
            self._matcher.accept(token_id)
