"""How likely a continuation is: the question and its answer."""

from dataclasses import dataclass

from llmctl.errors import RequestError
from llmctl.types.generation import TokenLogprob


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is each continuation after this context?

    Text is tokenised as it is, without a chat template; context and continuation are tokenised
    together and cut where the continuation begins, so that merges over the border are the model's.
    """

    context: str | tuple[int, ...]
    continuations: tuple[str | tuple[int, ...], ...]
    adapter: str | None = None
    logprobs: int | None = None
    """`None` is sums alone; k >= 0 describes every token, with the k likeliest in its place."""

    def __post_init__(self) -> None:
        if not self.continuations:
            raise RequestError("nothing to score: no continuation was given", param="continuations")


@dataclass(frozen=True, slots=True)
class Score:
    """Summed natural log-likelihood of one continuation."""

    logprob: float
    token_count: int
    is_greedy: bool
    """Whether greedy decoding of the context would have produced the continuation."""
    tokens: tuple[TokenLogprob, ...] = ()
    """Of the continuation, if they were asked for."""
