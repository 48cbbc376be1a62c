from llmctl.engine.batching.sampling.speculation import DRAFT_TOKENS, PromptLookup


def test_what_followed_the_same_tokens_before_is_guessed() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]
    assert PromptLookup().guess(text) == [4, 5, 6, 7, 8, 9][:DRAFT_TOKENS]


def test_the_latest_occurrence_counts() -> None:
    text = [1, 2, 3, 4, 0, 0, 1, 2, 3, 5, 0, 0, 1, 2, 3]
    assert PromptLookup().guess(text)[0] == 5


def test_new_text_gives_no_guess() -> None:
    assert PromptLookup().guess([1, 2, 3, 4, 5]) == []


def test_a_sequence_that_grows_is_indexed_as_it_grows() -> None:
    lookup, text = PromptLookup(), [1, 2, 3]
    assert lookup.guess(text) == []
    text += [9, 9, 1, 2, 3]
    assert lookup.guess(text)[:2] == [9, 9]


def test_wrong_guesses_in_a_row_make_it_pause() -> None:
    lookup, text = PromptLookup(), [1, 2, 3, 4, 1, 2, 3]
    for _ in range(4):
        assert lookup.guess(text)
        lookup.learn(0, len(text))
    assert lookup.guess(text) == []
    assert lookup.guess(text + [0] * 60 + [1, 2, 3])
