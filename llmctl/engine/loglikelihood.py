"""Log-likelihoods of texts, with the prefixes that they share computed once.

The samples of a few-shot benchmark share their examples, and the answers to one question share the
question. With 5 shots and four answers, about one token in twenty has to be computed. The scores
are those of computing each text by itself: every text is tokenised as a whole, and the sum of the
log-likelihoods of its pieces is that of the text, wherever it is cut.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llmctl.engine.base import BaseEngine, SupportsScore, SupportsTokenize, require
from llmctl.errors import ContextLengthError, EngineStoppedError, LlmctlError, RequestError
from llmctl.types import Score, ScoreRequest

TokenIds = tuple[int, ...]
ScoreFunction = Callable[[Sequence[ScoreRequest]], list[tuple[Score, ...]]]
"""A function like `SupportsScore.score`."""

_MERGED_TOKENS = 512
"""Most tokens of the requests that are merged into one: a larger forward pass is not faster, and
its parts cannot reuse each other's prefixes."""
GROUPS_PER_BATCH = 8
"""Groups that are sent to the engine at once; the scores do not depend on it."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """The log-likelihood of a text, or of its last part."""

    logprob: float
    """Summed natural log-likelihood of the scored tokens; the first token of a text has none."""
    token_count: int
    """Of a whole text: all its tokens, first and special ones included. Of a part: its own."""

    @property
    def mean_loss(self) -> float:
        """The loss divided by the number of all tokens, which OpenCompass calls PPL."""
        return -self.logprob / self.token_count


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The scores of the texts of one group."""

    texts: tuple[TextScore, ...]
    computed_tokens: int
    """Tokens computed for the group. The first group includes those that all groups share."""
    uncached_tokens: int
    """Tokens to compute if each text were computed by itself."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The tokenised texts of one group."""

    texts: tuple[TokenIds, ...]
    prefix: int
    """Number of tokens that all texts begin with."""
    scored_from: int
    """Index of the first token to score, at most `prefix`."""
    adapter: str | None

    @property
    def has_single_token_choices(self) -> bool:
        """Whether the texts differ only in their last token, and are scored from before it."""
        return self.scored_from < self.prefix == max(map(len, self.texts)) - 1

    @property
    def continuations(self) -> tuple[TokenIds, ...]:
        return tuple(text[self.scored_from :] for text in self.texts)

    @property
    def request(self) -> ScoreRequest:
        context = self.texts[0][: self.scored_from]
        return ScoreRequest(context, self.continuations, adapter=self.adapter)

    def group_score(self, scores: Sequence[Score], prefix_logprob: float = 0.0) -> GroupScore:
        """Return the scores of the group.

        Args:
            scores: of its continuations.
            prefix_logprob: log-likelihood of the tokens before them.
        """
        return GroupScore(
            tuple(TextScore(prefix_logprob + score.logprob, score.token_count) for score in scores),
            self.prefix - self.scored_from + sum(len(ids) - self.prefix for ids in self.texts),
            sum(map(len, self.texts)),
        )


def score_full_texts(
    engine: BaseEngine,
    groups: Sequence[Sequence[str]],
    adapter: str | None = None,
    batch: int = GROUPS_PER_BATCH,
    score: ScoreFunction | None = None,
) -> Iterator[GroupScore | LlmctlError]:
    """Yield for each group, in order, a score for each of its texts, or the error of the group.

    Args:
        score: used in place of the engine's own `score`, for example one that can be cancelled.

    Raises:
        EngineStoppedError: the engine is not running.
        UnsupportedError: the engine cannot tokenise or score.
    """
    tokenizer = require(engine, SupportsTokenize)
    score = score or require(engine, SupportsScore).score
    limit = engine.info().context_length
    encoded = [_encode(tokenizer, limit, group) for group in groups]
    valid = [texts for texts in encoded if not isinstance(texts, LlmctlError)]
    prefixes = {texts: _group_prefix(texts) for texts in valid}
    # Each text keeps a token of its own, and the first token of all is context.
    shared = min(_common_length([t[0] for t in valid]), *prefixes.values()) if valid else 1
    try:
        shared_logprob = _logprob(score, valid[0][0][:shared], adapter) if valid else 0.0
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        yield from (error for _ in encoded)
        return
    results = _score_groups(score, [_Group(t, prefixes[t], shared, adapter) for t in valid], batch)
    extra_tokens = shared  # counted for the first group
    for texts in encoded:
        if isinstance(texts, LlmctlError):
            yield texts
            continue
        group, scores = next(results)
        if isinstance(scores, LlmctlError):
            yield scores
            continue
        scored = group.group_score(scores, shared_logprob)
        full = tuple(
            replace(text, token_count=len(ids))
            for text, ids in zip(scored.texts, texts, strict=True)
        )
        yield replace(scored, texts=full, computed_tokens=scored.computed_tokens + extra_tokens)
        extra_tokens = 0


def score_continuations(
    engine: BaseEngine,
    groups: Sequence[tuple[str, Sequence[str]]],
    adapter: str | None = None,
    batch: int = GROUPS_PER_BATCH,
) -> Iterator[GroupScore | LlmctlError]:
    """Yield for each group, a context and its continuations, a score for each continuation.

    A token with characters on both sides of the border is part of the continuation.

    Raises:
        EngineStoppedError: the engine is not running.
        UnsupportedError: the engine cannot tokenise or score.
    """
    tokenizer, scorer = require(engine, SupportsTokenize), require(engine, SupportsScore)
    tokenized = []
    for context, continuations in groups:
        context_ids = tuple(tokenizer.tokenize(context))
        texts = tuple(tuple(tokenizer.tokenize(context + end)) for end in continuations)
        start = max(1, _common_length([context_ids, *texts]))
        tokenized.append(_Group(texts, start, start, adapter))
    for group, scores in _score_groups(scorer.score, tokenized, batch):
        yield scores if isinstance(scores, LlmctlError) else group.group_score(scores)


def _encode(
    tokenizer: SupportsTokenize, limit: int, group: Sequence[str]
) -> tuple[TokenIds, ...] | LlmctlError:
    try:
        texts = tuple(tuple(tokenizer.tokenize(text)) for text in group)
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        return error
    if not texts or min(map(len, texts)) < 2:
        return RequestError("a text has fewer than two tokens, so none of them can be scored")
    longest = max(map(len, texts))
    if longest > limit:
        return ContextLengthError(
            f"a text has {longest} tokens, and the model's context length is {limit}"
        )
    return texts


def _common_length(sequences: Sequence[TokenIds]) -> int:
    """Return the number of tokens that all sequences begin with."""
    # All sequences between the first and the last in order share what these two share.
    first, last = min(sequences), max(sequences)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


def _group_prefix(texts: Sequence[TokenIds]) -> int:
    return max(1, min(_common_length(texts), min(map(len, texts)) - 1))


def _logprob(score: ScoreFunction, ids: TokenIds, adapter: str | None) -> float:
    if len(ids) < 2:
        return 0.0
    return score([ScoreRequest(ids[:1], (ids[1:],), adapter=adapter)])[0][0].logprob


def _score_groups(
    score: ScoreFunction, groups: Sequence[_Group], batch: int
) -> Iterator[tuple[_Group, tuple[Score, ...] | LlmctlError]]:
    remaining = iter(groups)
    while part := list(islice(remaining, batch)):
        try:
            scores = _score_batch(score, part)
        except EngineStoppedError:
            raise
        except LlmctlError:
            # One group cannot be scored: score each by itself to keep the others.
            yield from ((group, _score_one(score, group)) for group in part)
        else:
            yield from zip(part, scores, strict=True)


def _score_batch(score: ScoreFunction, groups: Sequence[_Group]) -> list[tuple[Score, ...]]:
    """Score several groups in as few requests as possible; return the scores of each.

    Groups of single-token choices become continuations of the prefix that all groups share: the
    engine computes several of them in one forward pass, and each token once.
    """
    merged: list[tuple[ScoreRequest, list[_Group]]] = []
    tokens_left = 0
    for group in groups:
        size = group.prefix - group.scored_from
        if group.has_single_token_choices and merged and size <= tokens_left:
            request, members = merged[-1]
            continuations = request.continuations + group.continuations
            merged[-1] = (replace(request, continuations=continuations), [*members, group])
            tokens_left -= size
        else:
            merged.append((group.request, [group]))
            tokens_left = _MERGED_TOKENS - size if group.has_single_token_choices else 0
    by_group: list[tuple[Score, ...]] = []
    results = score([request for request, _ in merged])
    for (_, members), scores in zip(merged, results, strict=True):
        remaining = iter(scores)
        by_group += (tuple(islice(remaining, len(group.texts))) for group in members)
    return by_group


def _score_one(score: ScoreFunction, group: _Group) -> tuple[Score, ...] | LlmctlError:
    try:
        return score([group.request])[0]
    except EngineStoppedError:
        raise
    except LlmctlError as error:
        return error
