"""Exact duplicates of earlier rows, and prompts with several answers."""

import numpy as np
from numpy.typing import NDArray


def first_equal(digests: NDArray[np.uint64], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each row the first row with the same digest, or -1 if it is that row itself.

    Args:
        digests: shape (rows, 2), 128 bits of each row.
        alive: shape (rows,); other rows are left out, and get -1.

    Returns:
        Shape (rows,).
    """
    first = np.full(len(digests), -1, np.int64)
    rows = np.flatnonzero(alive)
    if not len(rows):
        return first
    # Sorted by digest, then by row: each run of equal digests begins with its first row.
    order = rows[np.lexsort((rows, digests[rows, 1], digests[rows, 0]))]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    starts = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    first[order[~is_new]] = starts[~is_new]
    return first


def first_of_prompt(
    prompts: NDArray[np.uint64], answers: NDArray[np.uint64], alive: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return for each row the first row with the same prompt and another answer, or -1.

    A row with the same answer as the first row of its prompt gets -1.

    Args:
        prompts: shape (rows,), 64 bits of each prompt; 0 means that the row has no prompt.
        answers: shape (rows,), 64 bits of each answer.
        alive: shape (rows,); other rows are left out, and get -1.

    Returns:
        Shape (rows,).
    """
    keys = np.stack((prompts, np.zeros_like(prompts)), axis=1)
    first = first_equal(keys, alive & (prompts != 0))
    same_answer = answers == answers[first]
    return np.where((first >= 0) & ~same_answer, first, -1)
