"""How likely are the labels' texts? What questions share is computed once, to the same numbers.

Whole texts of one subject begin with the same examples. The engine reads these once; then what the
labels of a question have in common; then each label's own few tokens. The sum over the pieces is
the text's log-likelihood, whatever the pieces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llmctl.engine.base import BaseEngine
from llmctl.errors import ContextLengthError, EngineStoppedError, LlmctlError
from llmctl.evaluation.candidate import Scored, TextScore
from llmctl.types import Question, Score, ScoreRequest

Ids = tuple[int, ...]

BATCH = 8
"""Questions that are handed to the engine at once."""


@dataclass(frozen=True, slots=True)
class _Job:
    """The labels' texts of one question, cut where they part."""

    texts: tuple[Ids, ...]
    trunk: int
    """Tokens that they all begin with."""
    counted_from: int
    """Index of the first token that counts: `trunk`, or somewhere before it."""

    @property
    def requests(self) -> list[ScoreRequest]:
        first, cut = self.texts[0], self.counted_from
        requests = [ScoreRequest(first[: self.trunk], tuple(t[self.trunk :] for t in self.texts))]
        if cut < self.trunk:
            requests.insert(0, ScoreRequest(first[:cut], (first[cut : self.trunk],)))
        return requests

    def scored(self, parts: Sequence[tuple[Score, ...]], before: float = 0.0) -> Scored:
        """Add the pieces up.

        Args:
            parts: the answers to `requests`.
            before: log-likelihood of what all questions begin with.
        """
        if len(parts) > 1:
            before += parts[0][0].logprob
        return Scored(
            tuple(TextScore(before + score.logprob, score.token_count) for score in parts[-1]),
            self.trunk - self.counted_from + sum(len(ids) - self.trunk for ids in self.texts),
            sum(map(len, self.texts)),
        )


def score_whole(
    engine: BaseEngine, groups: Sequence[Sequence[str]], batch: int = BATCH
) -> Iterator[Scored | LlmctlError]:
    """Score every token of whole texts but the first, which nothing predicts.

    `TextScore.tokens` is the length of the text, its first token included: by that OpenCompass
    divides.

    Args:
        groups: the labels' texts of each question; what all of them begin with is computed once.

    Raises:
        EngineStoppedError: the engine is gone.
    """
    limit = engine.info().context_length
    encoded = [tuple(tuple(engine.tokenize(text)) for text in group) for group in groups]
    fitting = [texts for texts in encoded if max(map(len, texts)) <= limit]
    if not fitting:
        yield from (_too_long(texts, limit) for texts in encoded)
        return
    # Every label keeps a token of its own, and the first token of all is context.
    trunks = {texts: _trunk(texts) for texts in fitting}
    shared = min(_common([texts[0] for texts in fitting]), *trunks.values())
    shared = max(1, shared)
    before = _logprob(engine, fitting[0][0][:shared])
    jobs = [_Job(texts, trunks[texts], shared) for texts in fitting]
    answers = _run(engine, jobs, batch)
    extra = shared  # the common beginning, on the bill of the first question
    for texts in encoded:
        if texts not in trunks:
            yield _too_long(texts, limit)
            continue
        job, parts = next(answers)
        if isinstance(parts, LlmctlError):
            yield parts
            continue
        scored = job.scored(parts, before)
        lengths = tuple(
            replace(score, tokens=len(ids)) for score, ids in zip(scored.scores, texts, strict=True)
        )
        yield replace(scored, scores=lengths, computed=scored.computed + extra)
        extra = 0


def _common(several: Sequence[Ids]) -> int:
    """Count the tokens that all of them begin with."""
    # Whatever lies between the first and the last in order begins as these two do.
    first, last = min(several), max(several)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


def _trunk(texts: Sequence[Ids]) -> int:
    return max(1, min(_common(texts), min(map(len, texts)) - 1))


def _logprob(engine: BaseEngine, ids: Ids) -> float:
    if len(ids) < 2:
        return 0.0
    return engine.score([ScoreRequest(ids[:1], (ids[1:],))])[0][0].logprob


def _too_long(texts: Sequence[Ids], limit: int) -> ContextLengthError:
    longest = max(map(len, texts))
    return ContextLengthError(f"{longest} tokens, and the model's context holds {limit}")


def score_endings(
    engine: BaseEngine, questions: Sequence[Question], batch: int = BATCH
) -> Iterator[Scored | LlmctlError]:
    """Score the tokens of each label's continuation alone; `TextScore.tokens` is their number.

    Raises:
        EngineStoppedError: the engine is gone.
    """
    jobs = []
    for question in questions:
        context = tuple(engine.tokenize(question.context))
        texts = tuple(tuple(engine.tokenize(question.context + e)) for e in question.continuations)
        # A token over the border counts to the continuation, so the context ends before it.
        start = max(1, _common([context, *texts]))
        jobs.append(_Job(texts, start, start))
    for job, parts in _run(engine, jobs, batch):
        yield parts if isinstance(parts, LlmctlError) else job.scored(parts)


def _run(
    engine: BaseEngine, jobs: Sequence[_Job], batch: int
) -> Iterator[tuple[_Job, list[tuple[Score, ...]] | LlmctlError]]:
    left = iter(jobs)
    while some := list(islice(left, batch)):
        requests = [job.requests for job in some]
        try:
            answers = iter(engine.score([one for several in requests for one in several]))
            done = [[next(answers) for _ in several] for several in requests]
        except EngineStoppedError:
            raise
        except LlmctlError:
            # One of them cannot be scored: find out which, and keep the rest.
            yield from ((job, _alone(engine, job)) for job in some)
        else:
            yield from zip(some, done, strict=True)


def _alone(engine: BaseEngine, job: _Job) -> list[tuple[Score, ...]] | LlmctlError:
    try:
        return engine.score(job.requests)
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        return error
