"""Texts that begin alike are scored as if each were computed by itself, and far cheaper."""

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


def scored(engine: HFRunner, groups: Sequence[Sequence[str]]) -> list[GroupScore]:
    found = list(score_full_texts(engine, groups))
    assert all(isinstance(group, GroupScore) for group in found), found
    return [group for group in found if isinstance(group, GroupScore)]


def plain_loss(model: torch.nn.Module, ids: list[int]) -> float:
    """Compute OpenCompass' PPL the plain way: one text, one forward pass, nothing shared."""
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(tokens).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")) / len(
        ids
    )


def test_scores_are_those_of_each_text_computed_by_itself(
    tiny: HFRunner, tiny_folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for group, found in zip(GROUPS, scored(tiny, GROUPS), strict=True):
        for text, score in zip(group, found.texts, strict=True):
            ids = tiny.tokenize(text)
            assert score.token_count == len(ids)
            assert score.mean_loss == pytest.approx(plain_loss(model, ids), abs=1e-5)


def test_what_is_shared_is_counted_once(tiny: HFRunner) -> None:
    found = scored(tiny, GROUPS)
    naive = sum(text.token_count for group in found for text in group.texts)
    # The head once; then of each group only what follows it, and of each text its own ending.
    assert sum(group.computed_tokens for group in found) < naive / 3


def test_the_same_scores_come_in_any_company(tiny: HFRunner) -> None:
    together = [text.logprob for group in scored(tiny, GROUPS) for text in group.texts]
    alone = [
        scored(tiny, [[text]])[0].texts[0].logprob for text in itertools.chain.from_iterable(GROUPS)
    ]
    assert together == pytest.approx(alone, abs=1e-4)


def test_two_answers_that_read_the_same_are_equally_likely(tiny: HFRunner) -> None:
    first, second = scored(tiny, [["What? Yes", "What? Yes"]])[0].texts
    assert first == second


def test_a_group_that_is_too_long_or_too_short_fails_alone(tiny: HFRunner) -> None:
    found = list(score_full_texts(tiny, [["a" * 2000, "b" * 2000], ["x"], *GROUPS]))
    assert "context" in str(found[0])
    assert "fewer than two tokens" in str(found[1])
    assert [type(group) for group in found[2:]] == [GroupScore] * 3
