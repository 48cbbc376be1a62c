"""A grammar that begins after the model's reasoning."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from llmctl.engine.batching.sampling.grammar import GrammarMatcher
from llmctl.engine.chat.response_delta import ReasoningTokens


class ReasoningMatcher:
    """Position of one sequence in its reasoning, and then in a grammar.

    A model that opens its reasoning itself may do so, or write the restricted text at once. The
    reasoning is free, but cannot end the response, and is ended when it has taken its budget.

    Args:
        matcher: of the grammar.
        tokens: the marks around the reasoning.
        end_ids: tokens that end a response.
        budget: most tokens of reasoning.
    """

    def __init__(
        self,
        matcher: GrammarMatcher,
        tokens: ReasoningTokens,
        end_ids: Sequence[int],
        budget: int,
    ) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._end_ids = list(end_ids)
        self._budget = budget
        self._last: tuple[int, ...] = ()
        """The last tokens of the reasoning, as many as close it."""
        self._forced: list[int] = []
        """Tokens that must come next."""
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
            if self._budget <= 0 and not self._forced:
                self._forced = list(self._tokens.forced_ids or self._tokens.close_ids)
            if self._forced:
                forced = logits[self._forced[0]].clone()
                logits.fill_(-math.inf)
                # A token that was excluded before is as likely as any if it is the only one.
                logits[self._forced[0]] = torch.nan_to_num(forced, neginf=0.0)
            else:
                logits[self._end_ids] = -math.inf
            return
        opening = logits[self._tokens.open_id].clone()
        self._matcher.apply(logits)
        if self._state == "start":
            logits[self._tokens.open_id] = opening

    def accept(self, token_id: int) -> None:
        """See `GrammarMatcher.accept`."""
        if self._state == "reasoning":
            self._budget -= 1
            if self._forced:
                del self._forced[0]
            close = self._tokens.close_ids
            self._last = (*self._last, token_id)[-len(close) :]
            if self._last == close:
                self._state = "grammar"
        elif self._state == "start" and token_id == self._tokens.open_id:
            self._state = "reasoning"
        else:
            self._state = "grammar"
            self._matcher.accept(token_id)


def reasoning_budget(max_new_tokens: int) -> int:
    """Return the most tokens of reasoning before a grammar: half of those of the response."""
    return max_new_tokens // 2
