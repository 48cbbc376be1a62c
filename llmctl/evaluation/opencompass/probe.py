"""Can a server say how likely a text is? Asked before an exam relies on it, because many cannot."""

from typing import Literal

from llmctl.errors import ConfigError
from llmctl.evaluation.backend import Endpoint
from llmctl.evaluation.opencompass.inside.wire import AskError, Server, echoed, score_shared

PROBES = ("The capital of France is Paris.", "The capital of France is Paris, and it rains there.")
NEAR = 0.02
"""In nats: what a text and its own beginning may differ by, were all its tokens certain."""


def likelihood_path(endpoint: Endpoint) -> Literal["score", "echo"]:
    """Return by which of its URLs a server tells log-likelihoods.

    Raises:
        ConfigError: by none; the message says what it answered.
    """
    server = Server(endpoint.base_url, endpoint.model, endpoint.api_key)
    ((_, scores, _),) = score_shared(server, [list(PROBES)])
    if not isinstance(scores, AskError):
        return "score"
    try:
        told = [echoed(server, text) for text in PROBES]
    except AskError as error:
        raise _useless(endpoint, str(error)) from error
    (short, short_count), (long, long_count) = told
    if not long_count > short_count > 1:
        raise _useless(endpoint, f"it counts {short_count} and {long_count} tokens in two texts")
    if short >= 0 or long >= short + NEAR:
        raise _useless(endpoint, f"its log-likelihoods are {short:.3g} and {long:.3g}")
    return "echo"


def _useless(endpoint: Endpoint, why: str) -> ConfigError:
    return ConfigError(
        f"{endpoint.base_url} does not say how likely a text is: {why}",
        hint="--mode gen works with every server",
    )
