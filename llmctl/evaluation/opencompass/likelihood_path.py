"""By which of its URLs does a server say how likely a text is?"""

from collections.abc import Sequence
from typing import Literal

from llmctl.errors import RequestError
from llmctl.evaluation.backend import ServerModel
from llmctl.evaluation.logprob_support import PROBE_TEXT, check_logprob_support
from llmctl.evaluation.opencompass.child.http import (
    ServerClient,
    ServerRequestError,
    echo_logprobs,
    score_shared_prefix,
)


def logprob_route(endpoint: ServerModel) -> Literal["score", "echo"]:
    """Return `score` for a server of ours, `echo` for another whose echoes are real.

    Raises:
        ConfigError: by none; the message says what it answered.
    """
    server = ServerClient(endpoint.base_url, endpoint.model, endpoint.api_key)
    ((_, scores, _),) = score_shared_prefix(server, [[PROBE_TEXT]])
    if not isinstance(scores, ServerRequestError):
        return "score"

    def echo(text: str) -> Sequence[float]:
        try:
            return echo_logprobs(server, text)
        except ServerRequestError as error:
            raise RequestError(str(error)) from error

    check_logprob_support(echo, endpoint.base_url)
    return "echo"
