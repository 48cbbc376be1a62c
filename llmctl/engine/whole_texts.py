"""How likely are whole texts that begin alike? What they share is computed once.

An exam asks for the likelihood of a few texts for each question: its few-shot head, the question
and one of the answers. The head is the same for all questions and the question for all answers, so
of 5-shot questions with four answers about one token in twenty has to be computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from llmctl.engine.base import BaseEngine
from llmctl.errors import LlmctlError, RequestError
from llmctl.types import ScoreRequest

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextScore:
    """How likely a text is."""

    logprob: float
    """Summed natural log-likelihood of all its tokens but the first, which nothing predicts."""
    token_count: int
    """Of the whole text, the first token and special tokens included."""

    @property
    def mean_loss(self) -> float:
        """Return what OpenCompass calls PPL: the loss divided by the number of all tokens."""
        return -self.logprob / self.token_count


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The texts of one group."""

    texts: tuple[TextScore, ...]
    computed: int
    """Tokens that were computed for them; of the first group also those that all groups share."""


def score_texts(
    engine: BaseEngine, groups: Sequence[Sequence[str]], adapter: str | None = None
) -> Iterator[GroupScore | LlmctlError]:
    """Yield for each group, in order, a score for each of its texts, or why it has none.

    Every text is tokenised as a whole, so the scores are those of computing it by itself.
    """
    encoded = [_encoded(engine, group) for group in groups]
    whole = [group for group in encoded if not isinstance(group, LlmctlError)]
    head = min((_shared(whole[0] + group) for group in whole), default=1)
    before: float | None = None
    for group in encoded:
        if isinstance(group, LlmctlError):
            yield group
            continue
        stem = _shared(group)
        computed = stem - head + sum(len(ids) - stem for ids in group)
        try:
            if before is None:
                before = _logprob(engine, group[0], 1, head, adapter)
                computed += head
            yield GroupScore(_scored(engine, group, head, stem, before, adapter), computed)
        except LlmctlError as error:
            yield error


def _encoded(engine: BaseEngine, group: Sequence[str]) -> list[Ids] | LlmctlError:
    try:
        texts = [tuple(engine.tokenize(text)) for text in group]
    except LlmctlError as error:
        return error
    if not texts or min(map(len, texts)) < 2:
        return RequestError("a text of fewer than two tokens has nothing to be predicted from")
    return texts


def _shared(texts: Sequence[Ids]) -> int:
    """Count the tokens that all begin with, leaving at least one of each."""
    columns = zip(*(text[:-1] for text in texts), strict=False)
    return max(1, sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)))


def _scored(
    engine: BaseEngine, group: list[Ids], head: int, stem: int, before: float, adapter: str | None
) -> tuple[TextScore, ...]:
    before += _logprob(engine, group[0], head, stem, adapter)
    asked = ScoreRequest(group[0][:stem], tuple(ids[stem:] for ids in group), adapter=adapter)
    (endings,) = engine.score([asked])
    return tuple(
        TextScore(before + ending.logprob, len(ids))
        for ids, ending in zip(group, endings, strict=True)
    )


def _logprob(engine: BaseEngine, ids: Ids, start: int, end: int, adapter: str | None) -> float:
    """Score a stretch of a text by itself; what comes before it is held from the last time."""
    if start >= end:
        return 0.0
    ((score,),) = engine.score([ScoreRequest(ids[:start], (ids[start:end],), adapter=adapter)])
    return score.logprob
