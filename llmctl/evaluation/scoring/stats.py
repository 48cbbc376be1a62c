"""Standard errors, confidence intervals and significance tests of accuracies."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

Z95: Final = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 %."""
_RESAMPLES: Final = 2000


def standard_error(correct: int, count: int) -> float | None:
    """Return the standard error of a mean of zeros and ones, as in lm-evaluation-harness.

    None for fewer than two values."""
    if count < 2:
        return None
    share = correct / count
    return math.sqrt(share * (1 - share) / (count - 1))


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score method (Wilson 1927).

    Unlike the normal approximation it stays between 0 and 1, and is accurate for small samples too.
    """
    if not count:
        return 0.0, 1.0
    share, square = correct / count, Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = (
        Z95
        * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
        / (1 + square / count)
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar 1947; binomial).

    Args:
        gained: samples that only the second run answered correctly.
        lost: samples that only the first run answered correctly.
    """
    flipped = gained + lost
    if not flipped:
        return 1.0
    tail: int = sum(math.comb(flipped, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**flipped)))


def paired_bootstrap(differences: Sequence[int]) -> tuple[float, float]:
    """Return the 95 % interval of a mean of paired differences (percentile bootstrap).

    Args:
        differences: 1, 0 or -1 for each sample; not empty.
    """
    import numpy as np

    count = len(differences)
    gained, lost = differences.count(1), differences.count(-1)
    # Resampling with replacement is a draw of how many of each value occur: a multinomial.
    shares = [gained / count, lost / count, (count - gained - lost) / count]
    draws = np.random.default_rng(0).multinomial(count, shares, size=_RESAMPLES)
    means = (draws[:, 0] - draws[:, 1]) / count
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple tests (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected
