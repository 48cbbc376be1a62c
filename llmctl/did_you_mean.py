"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def close_matches(
    name: str, known: Iterable[str], *, limit: int = 1, cutoff: float = 0.6
) -> list[str]:
    """Return the known names most similar to `name`, the most similar first; case is ignored.

    Args:
        limit: the most names to return.
        cutoff: the lowest similarity, from 0 to 1, as `difflib.SequenceMatcher.ratio` measures it.
    """
    by_lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=cutoff)
    return [by_lower[lower] for lower in found]


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to `name`, `None` if none is similar enough."""
    return next(iter(close_matches(name, known, cutoff=cutoff)), None)
