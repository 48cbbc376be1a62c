"""Chooses the next token of every row in a batch, each row by its own parameters.

Order of the steps, as in Transformers: penalties and bias on the logits, temperature, top-k, top-p
over what is left, min-p against the likeliest. A row that asks for none of them pays for none. One
uniform number per token, from the row's own generator, is turned into a token through the inverse
of the cumulative distribution: a seed gives the same text alone and in company.
"""

import random
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llmctl.engine.batching.sampling.grammar import GrammarMatcher
from llmctl.types import SamplingParams

SORTED_CANDIDATES = 256
"""How many of the likeliest tokens are sorted; rows that need to look further sort them all."""
MIN_TEMPERATURE = 1e-5
"""A lower temperature chooses no differently, and logits over it would leave float32's range."""


class SequenceSampler:
    """What one row brings to each of its choices: parameters, history, random numbers.

    Args:
        params: fully resolved but for the optional fields.
        prompt_ids: what repetition penalties count besides the reply.
        index: of the choice; each has random numbers of its own.
        end_ids: tokens that end the reply, forbidden before `min_new_tokens`.
        matcher: the state of the grammar that the reply must follow.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        index: int = 0,
        *,
        end_ids: Collection[int] = (),
        matcher: GrammarMatcher | None = None,
    ) -> None:
        self.params = params
        self._end_ids = sorted(end_ids)
        self._matcher = matcher
        self._chosen = 0
        self.greedy = params.temperature == 0
        self.logprobs = params.logprobs
        self._random = random.Random(None if params.seed is None else f"{params.seed}:{index}")
        self._penalised = bool(
            params.presence_penalty
            or params.frequency_penalty
            or params.repetition_penalty not in (None, 1)
        )
        self._seen = set(prompt_ids) if self._penalised else set()
        self._counts: Counter[int] = Counter()
        self._bias = dict(params.logit_bias or ())

    @property
    def adjusts(self) -> bool:
        """Whether the logits must be changed before anything else."""
        return self._penalised or bool(self._bias) or self._matcher is not None or self._too_short

    @property
    def plain_greedy(self) -> bool:
        """Whether the likeliest token is always the one, whatever the history."""
        return self.greedy and not self.adjusts and self.logprobs is None

    @property
    def complete(self) -> bool:
        """Whether the grammar leaves nothing to say."""
        return self._matcher is not None and self._matcher.finished

    @property
    def _too_short(self) -> bool:
        return self._chosen < (self.params.min_new_tokens or 0)

    @property
    def filters(self) -> bool:
        """Whether only part of the vocabulary may be chosen."""
        p = self.params
        return bool(p.top_k) or (p.top_p is not None and p.top_p < 1) or bool(p.min_p)

    def uniform(self) -> float:
        """Return the next number in [0, 1)."""
        return self._random.random()

    def remember(self, token_id: int) -> None:
        """Note a token that was chosen."""
        self._chosen += 1
        if self._matcher is not None and token_id not in self._end_ids:
            self._matcher.accept(token_id)
            self._matcher.prepare()
        if self._penalised:
            self._seen.add(token_id)
            self._counts[token_id] += 1

    def adjust(self, logits: Tensor) -> Tensor:
        """Return `logits` (vocab,) with penalties and bias applied, as a new tensor.

        Repetition divides positive and multiplies negative logits (Keskar et al. 2019); presence
        and frequency are subtracted as OpenAI's API reference gives them.
        """
        logits = logits.clone()
        p = self.params
        if p.repetition_penalty not in (None, 1) and self._seen:
            ids = torch.tensor(sorted(self._seen), device=logits.device)
            seen = logits[ids]
            factor = p.repetition_penalty
            logits[ids] = torch.where(seen > 0, seen / factor, seen * factor)
        if (p.presence_penalty or p.frequency_penalty) and self._counts:
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(
                list(self._counts.values()), device=logits.device, dtype=logits.dtype
            )
            logits[ids] -= counts * (p.frequency_penalty or 0.0) + (p.presence_penalty or 0.0)
        if self._bias:
            ids = torch.tensor(list(self._bias), device=logits.device)
            logits[ids] += torch.tensor(
                list(self._bias.values()), device=logits.device, dtype=logits.dtype
            )
        if self._too_short and self._end_ids:
            logits[self._end_ids] = float("-inf")
        if self._matcher is not None:
            self._matcher.apply(logits)
        return logits


def sample(logits: Tensor, rows: Sequence[SequenceSampler]) -> list[int]:
    """Choose one token per row.

    Args:
        logits: (rows, vocab), any float type; not changed.
        rows: the samplers in the order of the logits' rows. Whoever takes the tokens tells them.
    """
    if all(row.greedy and not row.adjusts for row in rows):
        chosen: list[int] = logits.argmax(-1).tolist()
        return chosen
    return _sample_mixed(logits.float(), rows)


def _sample_mixed(logits: Tensor, rows: Sequence[SequenceSampler]) -> list[int]:
    if any(row.adjusts for row in rows):
        logits = torch.stack(
            [row.adjust(own) if row.adjusts else own for row, own in zip(rows, logits, strict=True)]
        )
    chosen = [0] * len(rows)
    kinds = (
        ([i for i, row in enumerate(rows) if row.greedy], _likeliest),
        ([i for i, row in enumerate(rows) if not row.greedy and not row.filters], _drawn),
        ([i for i, row in enumerate(rows) if not row.greedy and row.filters], _drawn_filtered),
    )
    for which, choose in kinds:
        if which:
            # Choosing rows copies them; mostly all are of one kind.
            own = logits if len(which) == len(rows) else logits[which]
            for i, token_id in zip(which, choose(own, [rows[i] for i in which]), strict=True):
                chosen[i] = token_id
    return chosen


def _likeliest(logits: Tensor, _: Sequence[SequenceSampler]) -> list[int]:
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def _drawn(logits: Tensor, rows: Sequence[SequenceSampler]) -> list[int]:
    return _draw(_probabilities(logits, rows), rows)


def _drawn_filtered(logits: Tensor, rows: Sequence[SequenceSampler]) -> list[int]:
    return list(map(_draw_filtered, _probabilities(logits, rows), rows))


def _probabilities(logits: Tensor, rows: Sequence[SequenceSampler]) -> Tensor:
    temperatures = torch.tensor(
        [max(row.params.temperature or 1.0, MIN_TEMPERATURE) for row in rows]
    )
    return (logits / temperatures.to(logits.device).unsqueeze(1)).softmax(-1)


def _draw(probs: Tensor, rows: Sequence[SequenceSampler]) -> list[int]:
    """Invert the cumulative distribution of `probs` (rows, n), which need not sum to one."""
    cumulative = probs.cumsum(-1)
    mass = cumulative[:, -1:].contiguous()
    uniform = torch.tensor([[row.uniform()] for row in rows], device=probs.device)
    at = torch.searchsorted(cumulative, uniform * mass, right=True)
    # Rounding can put the number past the end, or on a token of probability zero at the end.
    chosen: list[int] = at.minimum(torch.searchsorted(cumulative, mass)).squeeze(1).tolist()
    return chosen


def _draw_filtered(probs: Tensor, row: SequenceSampler) -> int:
    p = row.params
    top_k = min(p.top_k or probs.numel(), probs.numel())
    size = min(SORTED_CANDIDATES, probs.numel())
    best, ids = probs.topk(size)
    whole_mass = 1.0 if top_k == probs.numel() else None
    if size < top_k and not _enough(best, row, whole_mass):
        best, ids = probs.sort(descending=True)
    best, ids = best[:top_k], ids[:top_k]
    if p.top_p is not None and p.top_p < 1:
        before = best.cumsum(0) - best
        mass = whole_mass if whole_mass is not None else best.sum()
        best = best[: max(int((before < p.top_p * mass).sum()), 1)]
    if p.min_p:
        best = best[best >= p.min_p * best[0]]
    return int(ids[_draw(best.unsqueeze(0), [row])[0]])


def _enough(best: Tensor, row: SequenceSampler, whole_mass: float | None) -> bool:
    """Whether top-p or min-p provably ends within the sorted candidates `best` (n,)."""
    p = row.params
    if p.min_p and bool(best[-1] < p.min_p * best[0]):
        return True
    return (
        whole_mass is not None
        and p.top_p is not None
        and p.top_p < 1
        and bool(best.sum() >= p.top_p)
    )
