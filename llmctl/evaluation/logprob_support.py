"""Can a server say how likely a text is? Asked before an exam relies on it, because many cannot."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from llmctl.errors import ConfigError, LlmctlError

PROBE_TEXT: Final = "The capital of France is Paris."
_LONGER: Final = f"{PROBE_TEXT} It rains there."
_NONSENSE: Final = "Purple of is the nine Paris capital whale."


def check_logprob_support(echo: Callable[[str], Sequence[float | None]], where: str) -> None:
    """Find out whether a server's log-likelihoods are real.

    Args:
        echo: returns the natural log-likelihood of each token of a text but the first.
        where: the server, for a person.

    Raises:
        ConfigError: they are not, or there are none; the message says what came.
    """
    try:
        short, longer, nonsense = (echo(text) for text in (PROBE_TEXT, _LONGER, _NONSENSE))
    except LlmctlError as error:
        raise no_logprob_support(where, str(error)) from error
    every = (*short, *longer, *nonsense)
    if not all(value is not None and math.isfinite(value) and value <= 0 for value in every):
        raise no_logprob_support(where, "its log-likelihoods are no such numbers")
    known = [[value for value in told if value is not None] for told in (short, longer, nonsense)]
    if not len(short) < len(longer):
        counts = f"{len(short) + 1} and {len(longer) + 1}"
        raise no_logprob_support(where, f"it counts {counts} tokens in a text and a longer one")
    sense, _, senseless = map(sum, known)
    if not any(known[0]) or sense <= senseless:
        raise no_logprob_support(
            where, "to it sense is no likelier than nonsense, or everything is certain"
        )


def no_logprob_support(where: str, why: str) -> ConfigError:
    """Return the error of a server that cannot be asked for likelihoods."""
    return ConfigError(
        f"{where} does not say how likely a text is: {why}",
        hint="--mode gen works with every server",
    )
