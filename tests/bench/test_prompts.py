"""Prompts of the benchmark."""

import pytest

from llmctl.bench.prompts import LONG_WORDS, prompt_batch
from llmctl.config.bench import PROMPT_SETS, PromptSet


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_the_same_key_gives_the_same_prompts_and_another_key_others(prompts: PromptSet) -> None:
    batch = prompt_batch(prompts, 8, "0/0/4")
    assert prompt_batch(prompts, 8, "0/0/4") == batch
    other = prompt_batch(prompts, 8, "0/1/4")
    prefixes = {turns[0][:20] for turns in batch.conversations}
    assert not prefixes & {turns[0][:20] for turns in other.conversations}


@pytest.mark.parametrize("prompts", ["short", "long", "multiturn"])
def test_prompts_of_a_level_differ_from_the_first_words_on(prompts: PromptSet) -> None:
    conversations = prompt_batch(prompts, 16, "key").conversations
    assert len({turns[0][:20] for turns in conversations}) == 16


def test_long_prompts_have_a_thousand_words() -> None:
    for prompts in ("long", "shared", "multiturn"):
        for turns in prompt_batch(prompts, 3, "key").conversations:
            assert len(turns[0].split()) > LONG_WORDS >= 1000


def test_shared_prompts_differ_only_at_the_end_and_have_a_priming_conversation() -> None:
    batch = prompt_batch("shared", 4, "key")
    assert batch.priming is not None
    conversations = {batch.priming, *batch.conversations}
    assert len(conversations) == 5
    assert len({turns[0].rpartition("\n\n")[0] for turns in conversations}) == 1


def test_a_second_turn_follows_a_long_first() -> None:
    for first, second in prompt_batch("multiturn", 2, "key").conversations:
        assert len(first.split()) > LONG_WORDS > 100 > len(second.split())
