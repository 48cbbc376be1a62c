"""Check that a server returns real log-likelihoods of a prompt, which many servers do not."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from llmctl.engine.base import BaseEngine
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.errors import ConfigError, LlmctlError

PROBE_TEXT: Final = "The capital of France is Paris."
_LONGER_TEXT: Final = f"{PROBE_TEXT} It rains there."
_NONSENSE: Final = "Purple of is the nine Paris capital whale."


def check_engine(engine: BaseEngine) -> None:
    """Check the server of a client; a local engine computes its log-likelihoods itself.

    Raises:
        ConfigError: as `check_logprob_support`.
    """
    if isinstance(engine, OpenAIBatchClient):
        check_logprob_support(lambda text: engine.echo(text).logprobs[1:], engine.url)


def check_logprob_support(echo: Callable[[str], Sequence[float | None]], url: str) -> None:
    """Compare the log-likelihoods of a sentence, a longer text and nonsense.

    Args:
        echo: returns the natural log-likelihood of each token of a text except the first.
        url: of the server, for the message.

    Raises:
        ConfigError: the server returns none, or they cannot be log-likelihoods.
    """
    try:
        short, longer, nonsense = (echo(text) for text in (PROBE_TEXT, _LONGER_TEXT, _NONSENSE))
    except LlmctlError as error:
        raise no_logprob_support(url, str(error)) from error
    values = [value for value in (*short, *longer, *nonsense) if value is not None]
    if len(values) < len(short) + len(longer) + len(nonsense) or not all(
        math.isfinite(value) and value <= 0 for value in values
    ):
        raise no_logprob_support(url, "it returned values that are not log-likelihoods")
    if not len(short) < len(longer):
        counts = f"{len(short) + 1} and {len(longer) + 1}"
        raise no_logprob_support(url, f"it counts {counts} tokens in a text and a longer one")
    if not any(short) or _total(short) <= _total(nonsense):
        raise no_logprob_support(url, "to it a sentence is no more likely than nonsense")


def _total(values: Sequence[float | None]) -> float:
    return sum(value for value in values if value is not None)


def no_logprob_support(url: str, reason: str) -> ConfigError:
    """Return the error of a server without usable log-likelihoods."""
    return ConfigError(
        f"{url} returns no usable log-likelihoods: {reason}",
        hint="--mode gen works with every server",
    )
