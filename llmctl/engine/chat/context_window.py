"""Fit of a conversation into the context window of a model."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

DEFAULT_REPLY_TOKENS = 256
"""Tokens reserved for a reply of unlimited length."""


def prompt_budget(context_length: int, max_new_tokens: int | None) -> int:
    """Return the tokens left for the prompt after reserving those of the reply.

    The reply gets at most half of the context.
    """
    reply = DEFAULT_REPLY_TOKENS if max_new_tokens is None else max_new_tokens
    return context_length - min(reply, context_length // 2)


def first_fitting(starts: Sequence[int], count: Callable[[int], int], budget: int) -> int | None:
    """Return the first of `starts` from which the conversation fits; `None` if none does.

    Bisects, so few conversations are tokenized.

    Args:
        starts: ascending indices of messages at which a shortened conversation can begin.
        count: returns the prompt tokens of the conversation from a start on.
        budget: tokens that the prompt may have.
    """
    position = bisect_left(starts, True, key=lambda start: count(start) <= budget)
    return starts[position] if position < len(starts) else None
