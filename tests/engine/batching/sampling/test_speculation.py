"""Draft tokens of prompt-lookup decoding."""

from llmctl.engine.batching.sampling.speculation import DRAFT_TOKENS, PromptLookup


def test_the_draft_is_what_followed_the_same_ngram_before() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]
    assert PromptLookup().propose(text) == [4, 5, 6, 7, 8, 9][:DRAFT_TOKENS]


def test_the_latest_occurrence_is_used() -> None:
    text = [1, 2, 3, 4, 0, 0, 1, 2, 3, 5, 0, 0, 1, 2, 3]
    assert PromptLookup().propose(text)[0] == 5


def test_new_text_gives_no_draft() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5]) == []


def test_the_index_grows_with_the_sequence() -> None:
    lookup, text = PromptLookup(), [1, 2, 3]
    assert lookup.propose(text) == []
    text += [9, 9, 1, 2, 3]
    assert lookup.propose(text)[:2] == [9, 9]


def test_drafting_pauses_after_repeated_rejections() -> None:
    lookup, text = PromptLookup(), [1, 2, 3, 4, 1, 2, 3]
    for _ in range(4):
        assert lookup.propose(text)
        lookup.record_result(0, len(text))
    assert lookup.propose(text) == []
    assert lookup.propose(text + [0] * 60 + [1, 2, 3])
