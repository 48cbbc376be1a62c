"""How likely are texts that begin alike? What they share is computed once, to the same numbers.

An exam asks for the likelihood of a few texts for each question: its few-shot head, the question
and one of the answers. The head is the same for all questions and the question for all answers, so
of 5-shot questions with four answers about one token in twenty has to be computed. Every text is
tokenised as a whole; the sum over its pieces is its log-likelihood, whatever the pieces.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llmctl.engine.base import BaseEngine
from llmctl.errors import ContextLengthError, EngineStoppedError, LlmctlError, RequestError
from llmctl.types import Score, ScoreRequest

Ids = tuple[int, ...]
ScoreFunction = Callable[[Sequence[ScoreRequest]], list[tuple[Score, ...]]]
"""As `BaseEngine.score`."""

_AT_ONCE = 512
"""Tokens that are read side by side: a pass of more is no faster, and hides more from itself."""
GROUPS_PER_BATCH = 8
"""Groups that are handed to the engine at once; the scores do not depend on it."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """How likely a text, or the end of one, is."""

    logprob: float
    """Summed natural log-likelihood of the tokens that count; nothing predicts a text's first."""
    token_count: int
    """Of a whole text: all its tokens, the first and special ones included. Of an end: its own."""

    @property
    def mean_loss(self) -> float:
        """Return what OpenCompass calls PPL: the loss divided by the number of all tokens."""
        return -self.logprob / self.token_count


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The texts of one group."""

    texts: tuple[TextScore, ...]
    computed_tokens: int
    """Tokens that were computed for them; of the first group also those that all groups share."""
    uncached_tokens: int
    """Tokens of all the texts, were each computed whole."""


@dataclass(frozen=True, slots=True)
class _Job:
    """The texts of one group, cut where they part."""

    texts: tuple[Ids, ...]
    trunk: int
    """Tokens that they all begin with."""
    counted_from: int
    """Index of the first token that counts: `trunk`, or somewhere before it."""
    adapter: str | None

    @property
    def by_letter(self) -> bool:
        """Whether the texts differ in their last token alone, and count from before it."""
        return self.counted_from < self.trunk == max(map(len, self.texts)) - 1

    @property
    def ends(self) -> tuple[Ids, ...]:
        return tuple(text[self.counted_from :] for text in self.texts)

    @property
    def request(self) -> ScoreRequest:
        context = self.texts[0][: self.counted_from]
        return ScoreRequest(context, self.ends, adapter=self.adapter)

    def scored(self, scores: Sequence[Score], before: float = 0.0) -> GroupScore:
        """Add the pieces up.

        Args:
            scores: of the ends.
            before: log-likelihood of what all groups begin with.
        """
        return GroupScore(
            tuple(TextScore(before + score.logprob, score.token_count) for score in scores),
            self.trunk - self.counted_from + sum(len(ids) - self.trunk for ids in self.texts),
            sum(map(len, self.texts)),
        )


def score_full_texts(
    engine: BaseEngine,
    groups: Sequence[Sequence[str]],
    adapter: str | None = None,
    batch: int = GROUPS_PER_BATCH,
    score: ScoreFunction | None = None,
) -> Iterator[GroupScore | LlmctlError]:
    """Yield for each group, in order, a score for each of its texts, or why it has none.

    The scores are those of computing every text by itself.

    Args:
        score: asks the engine, for those who may want to stop waiting for it.

    Raises:
        EngineStoppedError: the engine is gone.
    """
    ask = engine.score if score is None else score
    encoded = [_encoded(engine, group) for group in groups]
    fitting = [texts for texts in encoded if not isinstance(texts, LlmctlError)]
    trunks = {texts: _trunk(texts) for texts in fitting}
    # Every text keeps a token of its own, and the first token of all is context.
    head = min((_common([t[0] for t in fitting]), *trunks.values())) if fitting else 1
    try:
        before = _logprob(ask, fitting[0][0][:head], adapter) if fitting else 0.0
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        yield from (error for _ in encoded)
        return
    answers = _run(ask, [_Job(t, trunks[t], head, adapter) for t in fitting], batch)
    extra = head  # on the bill of the first group
    for texts in encoded:
        if isinstance(texts, LlmctlError):
            yield texts
            continue
        job, ends = next(answers)
        if isinstance(ends, LlmctlError):
            yield ends
            continue
        scored = job.scored(ends, before)
        lengths = tuple(
            replace(own, token_count=len(ids)) for own, ids in zip(scored.texts, texts, strict=True)
        )
        yield replace(scored, texts=lengths, computed_tokens=scored.computed_tokens + extra)
        extra = 0


def score_continuations(
    engine: BaseEngine,
    groups: Sequence[tuple[str, Sequence[str]]],
    adapter: str | None = None,
    batch: int = GROUPS_PER_BATCH,
) -> Iterator[GroupScore | LlmctlError]:
    """Yield for each group, a context and its continuations, how likely each continuation is.

    A token over the border between the two counts to the continuation.

    Raises:
        EngineStoppedError: the engine is gone.
    """
    jobs = []
    for context, ends in groups:
        begin = tuple(engine.tokenize(context))
        texts = tuple(tuple(engine.tokenize(context + end)) for end in ends)
        start = max(1, _common([begin, *texts]))
        jobs.append(_Job(texts, start, start, adapter))
    for job, scores in _run(engine.score, jobs, batch):
        yield scores if isinstance(scores, LlmctlError) else job.scored(scores)


def _encoded(engine: BaseEngine, group: Sequence[str]) -> tuple[Ids, ...] | LlmctlError:
    try:
        texts = tuple(tuple(engine.tokenize(text)) for text in group)
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        return error
    if not texts or min(map(len, texts)) < 2:
        return RequestError("a text of fewer than two tokens has nothing to be predicted from")
    longest, limit = max(map(len, texts)), engine.info().context_length
    if longest > limit:
        return ContextLengthError(f"{longest} tokens, and the model's context holds {limit}")
    return texts


def _common(several: Sequence[Ids]) -> int:
    """Count the tokens that all of them begin with."""
    # Whatever lies between the first and the last in order begins as these two do.
    first, last = min(several), max(several)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


def _trunk(texts: Sequence[Ids]) -> int:
    return max(1, min(_common(texts), min(map(len, texts)) - 1))


def _logprob(score: ScoreFunction, ids: Ids, adapter: str | None) -> float:
    if len(ids) < 2:
        return 0.0
    return score([ScoreRequest(ids[:1], (ids[1:],), adapter=adapter)])[0][0].logprob


def _run(
    score: ScoreFunction, jobs: Sequence[_Job], batch: int
) -> Iterator[tuple[_Job, tuple[Score, ...] | LlmctlError]]:
    left = iter(jobs)
    while some := list(islice(left, batch)):
        try:
            done = _side_by_side(score, some)
        except EngineStoppedError:
            raise
        except LlmctlError:
            # One of them cannot be scored: find out which, and keep the rest.
            yield from ((job, _alone(score, job)) for job in some)
        else:
            yield from zip(some, done, strict=True)


def _side_by_side(score: ScoreFunction, jobs: Sequence[_Job]) -> list[tuple[Score, ...]]:
    """Score several groups in as few passes as may be; return the scores of each one's ends.

    Groups whose texts differ in the last token alone, such as letters, are ends of what all of them
    begin with: the engine reads several at once, and each but once.
    """
    asked: list[tuple[ScoreRequest, list[_Job]]] = []
    room = 0
    for job in jobs:
        size = job.trunk - job.counted_from
        if job.by_letter and asked and size <= room:
            request, several = asked[-1]
            asked[-1] = (
                replace(request, continuations=request.continuations + job.ends),
                [
                    *several,
                    job,
                ],
            )
            room -= size
        else:
            asked.append((job.request, [job]))
            room = _AT_ONCE - size if job.by_letter else 0
    found: list[tuple[Score, ...]] = []
    for (_, several), scores in zip(asked, score([one for one, _ in asked]), strict=True):
        left = iter(scores)
        found += (tuple(islice(left, len(job.texts))) for job in several)
    return found


def _alone(score: ScoreFunction, job: _Job) -> tuple[Score, ...] | LlmctlError:
    try:
        return score([job.request])[0]
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        return error
