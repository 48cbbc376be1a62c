"""Tests that sharing of prefixes does not change scores and saves computation."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loglikelihood import GroupScore, score_full_texts

HEAD = "Two and two make four.\nThree and three make six.\n"
GROUPS = [
    [f"{HEAD}Four and four make {answer}." for answer in ("eight", "nine", "ten")],
    [f"{HEAD}One and one make {answer}" for answer in "2345"],
    [f"{HEAD}One and one make {answer}" for answer in ("2", "2 or 3")],
]


def score_all(engine: HFRunner, groups: Sequence[Sequence[str]]) -> list[GroupScore]:
    results = list(score_full_texts(engine, groups))
    assert all(isinstance(group, GroupScore) for group in results), results
    return [group for group in results if isinstance(group, GroupScore)]


def plain_loss(model: torch.nn.Module, ids: list[int]) -> float:
    """Compute OpenCompass' PPL of one text in one forward pass."""
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(tokens).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")) / len(
        ids
    )


def test_scores_equal_those_of_single_texts(tiny: HFRunner, tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for group, result in zip(GROUPS, score_all(tiny, GROUPS), strict=True):
        for text, score in zip(group, result.texts, strict=True):
            ids = tiny.tokenize(text)
            assert score.token_count == len(ids)
            assert score.mean_loss == pytest.approx(plain_loss(model, ids), abs=1e-5)


def test_shared_tokens_are_counted_once(tiny: HFRunner) -> None:
    results = score_all(tiny, GROUPS)
    uncached = sum(text.token_count for group in results for text in group.texts)
    # The shared prefix once, then the prefix of each group and the ending of each text.
    assert sum(group.computed_tokens for group in results) < uncached / 3


def test_scores_do_not_depend_on_other_groups(tiny: HFRunner) -> None:
    together = [text.logprob for group in score_all(tiny, GROUPS) for text in group.texts]
    alone = [
        score_all(tiny, [[text]])[0].texts[0].logprob
        for text in itertools.chain.from_iterable(GROUPS)
    ]
    assert together == pytest.approx(alone, abs=1e-4)


def test_equal_texts_have_equal_scores(tiny: HFRunner) -> None:
    first, second = score_all(tiny, [["What? Yes", "What? Yes"]])[0].texts
    assert first == second


def test_an_invalid_group_does_not_affect_others(tiny: HFRunner) -> None:
    results = list(score_full_texts(tiny, [["a" * 2000, "b" * 2000], ["x"], *GROUPS]))
    assert "context" in str(results[0])
    assert "fewer than two tokens" in str(results[1])
    assert [type(group) for group in results[2:]] == [GroupScore] * 3
