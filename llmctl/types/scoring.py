"""Requests and results of log-likelihoods."""

from dataclasses import dataclass

from llmctl.errors import RequestError
from llmctl.types.generation import TokenLogprob


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A request for the log-likelihood of each continuation after a context.

    Text is tokenised without a chat template. Context and continuation are tokenised together and
    split after the tokens of the context, so that tokens across the border are the model's own.
    """

    context: str | tuple[int, ...]
    continuations: tuple[str | tuple[int, ...], ...]
    adapter: str | None = None
    logprobs: int | None = None
    """`None` for sums only; k >= 0 for every token with the k likeliest in its place."""

    def __post_init__(self) -> None:
        if not self.continuations:
            raise RequestError("there is no continuation to score", param="continuations")


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood of one continuation: the sum over its tokens, in nats."""

    logprob: float
    token_count: int
    is_greedy: bool
    """Whether greedy decoding after the context gives the continuation."""
    tokens: tuple[TokenLogprob, ...] = ()
    """Tokens of the continuation, if requested."""
