"""Which rows repeat an earlier row, and which prompts have several answers?"""

import numpy as np
from numpy.typing import NDArray


def first_equal(digests: NDArray[np.uint64], alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each row, the first row with the same digest, or -1 where it is that row itself.

    Args:
        digests: shape (rows, 2), 128 bits of each row.
        alive: shape (rows,); other rows are neither repeated nor repeats.
    """
    first = np.full(len(digests), -1, np.int64)
    rows = np.flatnonzero(alive)
    if not len(rows):
        return first
    # Stable: among equal digests the rows stay in their order, so each run begins with the first.
    order = rows[np.lexsort((rows, digests[rows, 1], digests[rows, 0]))]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    starts = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    first[order[~is_new]] = starts[~is_new]
    return first


def first_of_prompt(
    prompts: NDArray[np.uint64], answers: NDArray[np.uint64], alive: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return, for each row, the first row that answers the same prompt otherwise, or -1.

    A prompt of 0 is none. Rows that repeat the first answer to their prompt are left out.
    """
    keys = np.stack((prompts, np.zeros_like(prompts)), axis=1)
    first = first_equal(keys, alive & (prompts != 0))
    same_answer = answers == answers[first]
    return np.where((first >= 0) & ~same_answer, first, -1)
