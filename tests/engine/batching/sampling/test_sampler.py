"""Sampling: temperature, filters, penalties, bias and seeds."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from llmctl.engine.batching.sampling.sampler import SORTED_CANDIDATES, SequenceSampler, sample
from llmctl.errors import RequestError
from llmctl.types import DEFAULT_SAMPLING, SamplingParams

DRAWS = 4000
ROWS = 100
"""Sequences in a batch, each with its own random numbers."""


def sampler(prompt: tuple[int, ...] = (), **params: Any) -> SequenceSampler:
    resolved = SamplingParams(**params).with_defaults(DEFAULT_SAMPLING)
    return SequenceSampler(resolved, prompt)


def shares(logits: torch.Tensor, **params: Any) -> dict[int, float]:
    """Return the frequency of each token in samples of the same logits."""
    rows = [sampler(seed=seed, **params) for seed in range(ROWS)]
    counts: Counter[int] = Counter()
    for _ in range(DRAWS // ROWS):
        counts.update(sample(logits.expand(ROWS, -1), rows))
    return {token: count / DRAWS for token, count in counts.items()}


def support(logits: torch.Tensor, **params: Any) -> set[int]:
    """Return the tokens that are sampled: each that has a share of a twentieth or more."""
    rows = [sampler(seed=seed, **params) for seed in range(5 * ROWS)]
    return set(sample(logits.expand(len(rows), -1), rows))


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert support(LOGITS, temperature=0) == {0}


def test_samples_follow_the_distribution() -> None:
    drawn = shares(LOGITS, temperature=1)
    for token, share in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert drawn[token] == pytest.approx(share, abs=0.03)


def test_a_low_temperature_sharpens_the_distribution() -> None:
    assert shares(LOGITS, temperature=0.5)[0] == pytest.approx(0.25 / 0.365, abs=0.03)


@pytest.mark.parametrize("temperature", [1e-5, 1e-40, 1e-300])
def test_the_lowest_temperatures_take_the_likeliest_token(temperature: float) -> None:
    rows = [sampler(temperature=temperature, top_k=k, seed=s) for k in (0, 2) for s in range(20)]
    for logits in (LOGITS, LOGITS * 1000):
        assert sample(logits.expand(len(rows), -1), rows) == [0] * len(rows)


def test_a_penalty_outside_its_range_is_refused() -> None:
    for penalty in (0.0, 1e-300, 0.009):
        with pytest.raises(RequestError, match=r"between 0\.01 and 10") as caught:
            SamplingParams(repetition_penalty=penalty)
        assert caught.value.param == "repetition_penalty"


def test_top_k_keeps_the_k_likeliest() -> None:
    assert support(LOGITS, temperature=1, top_k=2) == {0, 1}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    assert support(LOGITS, temperature=1, top_p=0.79) == {0, 1}
    assert support(LOGITS, temperature=1, top_p=0.81) == {0, 1, 2}


def test_top_p_zero_keeps_the_likeliest_token() -> None:
    assert support(LOGITS, temperature=1, top_p=0) == {0}


def test_top_p_applies_to_the_tokens_that_top_k_keeps() -> None:
    # 0.5 / (0.5 + 0.3) = 0.625 reaches 0.6 alone.
    assert support(LOGITS, temperature=1, top_k=2, top_p=0.6) == {0}


def test_min_p_is_relative_to_the_likeliest_token() -> None:
    assert support(LOGITS, temperature=1, min_p=0.31) == {0, 1}
    assert support(LOGITS, temperature=1, min_p=0.29) == {0, 1, 2}


def test_top_p_extends_beyond_the_sorted_candidates_if_needed() -> None:
    flat = torch.zeros(1000)
    drawn = support(flat, temperature=1, top_p=0.5)
    assert len(drawn) > SORTED_CANDIDATES


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    alone, rows = sampler(seed=5, temperature=1), [sampler(seed=s, temperature=1) for s in (1, 5)]
    greedy = sampler(temperature=0)
    expected = [sample(logits[1:2], [alone])[0] for _ in range(20)]
    together = [sample(logits, [rows[0], rows[1], greedy])[1] for _ in range(20)]
    assert together == expected
    assert len(set(expected)) > 5


def test_logit_bias_forbids_and_forces() -> None:
    assert support(LOGITS, temperature=1, logit_bias=((0, -100.0),)) == {1, 2, 3}
    assert support(LOGITS, temperature=0, logit_bias=((3, 100.0),)) == {3}


def test_presence_is_subtracted_once_and_frequency_per_occurrence() -> None:
    one = sampler(presence_penalty=0.5, frequency_penalty=0.25)
    one.record(2)
    one.record(2)
    adjusted = one.adjust(torch.zeros(4))
    assert adjusted.tolist() == [0.0, 0.0, -1.0, 0.0]


def test_the_prompt_counts_for_the_repetition_penalty_alone() -> None:
    logits = torch.tensor([1.0, -1.0, 1.0])
    assert sampler((0, 1), presence_penalty=1.0).adjust(logits).tolist() == [1.0, -1.0, 1.0]
    assert sampler((0, 1), repetition_penalty=2.0).adjust(logits).tolist() == [0.5, -2.0, 1.0]


def test_a_token_of_probability_zero_is_never_sampled() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    assert support(logits, temperature=1) == {1, 3}


def test_the_logits_of_the_caller_are_not_changed() -> None:
    logits = LOGITS.clone().unsqueeze(0)
    sample(logits, [sampler(temperature=1, logit_bias=((0, 5.0),))])
    assert torch.equal(logits[0], LOGITS)
