"""Sampling of the next token of every sequence in a batch, each with its own parameters.

Order of the steps, as in Transformers: penalties and bias on the logits, temperature, top-k, top-p
over the rest, min-p relative to the likeliest. Steps that no sequence uses are skipped. One uniform
number per token, from the sequence's own generator, gives a token by the inverse of the cumulative
distribution, so that a seed gives the same text alone and in a batch.
"""

import random
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llmctl.engine.batching.sampling.grammar import GrammarMatcher
from llmctl.engine.batching.sampling.reasoning import ReasoningMatcher
from llmctl.types import SamplingParams

SORTED_CANDIDATES = 256
"""Number of likeliest tokens that are sorted first; sequences that need more sort them all."""
MIN_TEMPERATURE = 1e-5
"""Temperatures below this choose the same token, and logits divided by them overflow float32."""


class SequenceSampler:
    """Sampling state of one sequence: parameters, generated tokens, random numbers.

    Args:
        params: resolved; only optional fields may be `None`.
        prompt_ids: counted by the repetition penalty, besides the reply.
        index: of the choice; each choice has its own random numbers.
        end_ids: tokens that end the reply, forbidden before `min_new_tokens`.
        matcher: state of the grammar that the reply must follow.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        index: int = 0,
        *,
        end_ids: Collection[int] = (),
        matcher: GrammarMatcher | ReasoningMatcher | None = None,
    ) -> None:
        self.params = params
        self._end_ids = sorted(end_ids)
        self._matcher = matcher
        self._token_count = 0
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
        """Whether the logits must be changed before sampling."""
        return self._penalised or bool(self._bias) or self._matcher is not None or self._too_short

    @property
    def plain_greedy(self) -> bool:
        """Whether sampling is the argmax of the raw logits, as speculation requires."""
        return self.greedy and not self.adjusts and self.logprobs is None

    @property
    def complete(self) -> bool:
        """Whether the grammar allows no further text."""
        return self._matcher is not None and self._matcher.finished

    @property
    def _too_short(self) -> bool:
        return self._token_count < (self.params.min_new_tokens or 0)

    @property
    def filters(self) -> bool:
        """Whether top-k, top-p or min-p limits the vocabulary."""
        p = self.params
        return bool(p.top_k) or (p.top_p is not None and p.top_p < 1) or bool(p.min_p)

    def uniform(self) -> float:
        """Return the next random number in [0, 1)."""
        return self._random.random()

    def record(self, token_id: int) -> None:
        """Add a sampled token to the history.

        Raises:
            RequestError: as `GrammarMatcher.accept`.
        """
        self._token_count += 1
        if self._matcher is not None and token_id not in self._end_ids:
            self._matcher.accept(token_id)
            self._matcher.prefetch_mask()
        if self._penalised:
            self._seen.add(token_id)
            self._counts[token_id] += 1

    def adjust(self, logits: Tensor) -> Tensor:
        """Return `logits` (vocab,) with penalties and bias applied, as a new tensor.

        Repetition divides positive and multiplies negative logits (Keskar et al. 2019); presence
        and frequency are subtracted as in OpenAI's API reference.
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


def sample(logits: Tensor, samplers: Sequence[SequenceSampler]) -> list[int]:
    """Sample one token per row.

    Args:
        logits: (rows, vocab), any float type; not changed.
        samplers: one per row. The caller passes each token to `SequenceSampler.record`.
    """
    if all(sampler.greedy and not sampler.adjusts for sampler in samplers):
        chosen: list[int] = logits.argmax(-1).tolist()
        return chosen
    return _sample_mixed(logits.float(), samplers)


def _sample_mixed(logits: Tensor, samplers: Sequence[SequenceSampler]) -> list[int]:
    if any(sampler.adjusts for sampler in samplers):
        logits = torch.stack(
            [s.adjust(row) if s.adjusts else row for s, row in zip(samplers, logits, strict=True)]
        )
    chosen = [0] * len(samplers)
    groups = (
        ([i for i, s in enumerate(samplers) if s.greedy], _argmax),
        ([i for i, s in enumerate(samplers) if not s.greedy and not s.filters], _sample_unfiltered),
        ([i for i, s in enumerate(samplers) if not s.greedy and s.filters], _sample_filtered),
    )
    for indices, choose in groups:
        if indices:
            # Indexing copies the rows; usually all are of one kind.
            rows = logits if len(indices) == len(samplers) else logits[indices]
            token_ids = choose(rows, [samplers[i] for i in indices])
            for i, token_id in zip(indices, token_ids, strict=True):
                chosen[i] = token_id
    return chosen


def _argmax(logits: Tensor, _: Sequence[SequenceSampler]) -> list[int]:
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def _sample_unfiltered(logits: Tensor, samplers: Sequence[SequenceSampler]) -> list[int]:
    return _draw(_probabilities(logits, samplers), samplers)


def _sample_filtered(logits: Tensor, samplers: Sequence[SequenceSampler]) -> list[int]:
    return list(map(_draw_filtered, _probabilities(logits, samplers), samplers))


def _probabilities(logits: Tensor, samplers: Sequence[SequenceSampler]) -> Tensor:
    temperatures = torch.tensor(
        [max(sampler.params.temperature or 1.0, MIN_TEMPERATURE) for sampler in samplers]
    )
    return (logits / temperatures.to(logits.device).unsqueeze(1)).softmax(-1)


def _draw(probs: Tensor, samplers: Sequence[SequenceSampler]) -> list[int]:
    """Draw from `probs` (rows, n) by inverting their cumulative sum, which need not end at 1."""
    cumulative = probs.cumsum(-1)
    mass = cumulative[:, -1:].contiguous()
    uniform = torch.tensor([[sampler.uniform()] for sampler in samplers], device=probs.device)
    at = torch.searchsorted(cumulative, uniform * mass, right=True)
    # Rounding may give an index past the end, or one of probability zero at the end.
    chosen: list[int] = at.minimum(torch.searchsorted(cumulative, mass)).squeeze(1).tolist()
    return chosen


def _draw_filtered(probs: Tensor, sampler: SequenceSampler) -> int:
    p = sampler.params
    top_k = min(p.top_k or probs.numel(), probs.numel())
    size = min(SORTED_CANDIDATES, probs.numel())
    best, ids = probs.topk(size)
    total_mass = 1.0 if top_k == probs.numel() else None
    if size < top_k and not _covers_filter(best, sampler, total_mass):
        best, ids = probs.sort(descending=True)
    best, ids = best[:top_k], ids[:top_k]
    if p.top_p is not None and p.top_p < 1:
        before = best.cumsum(0) - best
        mass = total_mass if total_mass is not None else best.sum()
        best = best[: max(int((before < p.top_p * mass).sum()), 1)]
    if p.min_p:
        best = best[best >= p.min_p * best[0]]
    return int(ids[_draw(best.unsqueeze(0), [sampler])[0]])


def _covers_filter(best: Tensor, sampler: SequenceSampler, total_mass: float | None) -> bool:
    """Whether top-p or min-p is certain to end within the sorted candidates `best` (n,)."""
    p = sampler.params
    if p.min_p and bool(best[-1] < p.min_p * best[0]):
        return True
    return (
        total_mass is not None
        and p.top_p is not None
        and p.top_p < 1
        and bool(best.sum() >= p.top_p)
    )
