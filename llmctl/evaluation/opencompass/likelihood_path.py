"""By which of its URLs does a server say how likely a text is?"""

from collections.abc import Sequence
from typing import Literal

from llmctl.errors import RequestError
from llmctl.evaluation.backend import Endpoint
from llmctl.evaluation.logprob_support import SENSE, check_likelihoods
from llmctl.evaluation.opencompass.child.http import AskError, Server, echoed, score_shared


def likelihood_path(endpoint: Endpoint) -> Literal["score", "echo"]:
    """Return `score` for a server of ours, `echo` for another whose echoes are real.

    Raises:
        ConfigError: by none; the message says what it answered.
    """
    server = Server(endpoint.base_url, endpoint.model, endpoint.api_key)
    ((_, scores, _),) = score_shared(server, [[SENSE]])
    if not isinstance(scores, AskError):
        return "score"

    def echo(text: str) -> Sequence[float]:
        try:
            return echoed(server, text)
        except AskError as error:
            raise RequestError(str(error)) from error

    check_likelihoods(echo, endpoint.base_url)
    return "echo"
