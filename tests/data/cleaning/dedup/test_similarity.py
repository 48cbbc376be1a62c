"""Equality and similarity of rows, and their sketches."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.cleaning.dedup.duplicates import first_equal, first_of_prompt
from llmctl.data.cleaning.dedup.shingles import shingle_hashes, shingles, units
from llmctl.data.cleaning.dedup.similarity import (
    ComparableRow,
    RowParts,
    jaccard,
    row_digest,
    row_parts,
)
from llmctl.data.cleaning.dedup.sketch import (
    PERMUTATIONS,
    Banding,
    estimate_similarity,
    minhash_signature,
)
from llmctl.data.formats.parse import parse_row
from llmctl.data.io.reader import RawRow
from llmctl.types import Example
from tests.data.cleaning.rows import chat, row

WORDS = [f"w{n}x" for n in range(3000)]
ANSWER = "海纳百川，有容乃大；壁立千仞，无欲则刚。学而时习之，不亦说乎？有朋自远方来，不亦乐乎？"


def example(of: RawRow) -> Example:
    found = parse_row(of)
    assert isinstance(found, Example)
    return found


def similarity(one: RawRow, other: RawRow, at_least: float = 0.8, **options: bool) -> float | None:
    a, b = (
        ComparableRow(row_parts(example(of), ignore_numbers=options.get("ignore_numbers", False)))
        for of in (one, other)
    )
    assert a.similarity(b, at_least) == b.similarity(a, at_least)
    return a.similarity(b, at_least)


def test_case_width_and_white_space_are_ignored_by_the_digest() -> None:
    one, other = (
        example(chat("What is  AI?", "ＡＩ is\nthis.")),
        example(chat("what is ai?", "AI is this.")),
    )
    assert row_digest(one) == row_digest(other)


@pytest.mark.parametrize(
    "other",
    [
        chat("What is AI?", "AI is that."),
        row(
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is AI?"},
                {"role": "assistant", "content": "AI is this."},
            ]
        ),
        chat("What is AI?", "AI is this.", tools=[{"type": "function", "function": {"name": "f"}}]),
        row(prompt="What is AI?", chosen="AI is this.", rejected="No."),
        row(text="What is AI?\nAI is this."),
    ],
)
def test_answer_system_prompt_tools_and_kind_are_part_of_the_digest(other: RawRow) -> None:
    assert row_digest(example(chat("What is AI?", "AI is this."))) != row_digest(example(other))


def test_units_are_words_and_chinese_characters() -> None:
    assert units("你好，World！ＡＩ 3.5-turbo") == ("你", "好", "world", "ai", "3", "5", "turbo")
    assert shingles("one two three four") == {("one", "two", "three"), ("two", "three", "four")}
    assert shingles("天地玄黄宇宙") == {tuple("天地玄黄宇"), tuple("地玄黄宇宙")}
    assert shingles("short text") == {("short", "text")}
    assert shingles("") == set()


@given(st.text(alphabet="ab 中文字，.", max_size=80))
def test_each_shingle_has_its_own_hash(text: str) -> None:
    assert len(set(shingle_hashes(text).tolist())) == len(shingles(text))


def test_rows_with_few_different_words_are_similar() -> None:
    base = ANSWER * 1 + "温故而知新，可以为师矣。三人行，必有我师焉。"
    assert (
        similarity(chat("请背诵这一段古文", base), chat("请背诵这一段古文", base + "好。"))
        is not None
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ("Add 12 and 30. " + "Explain every step. " * 1, "word " * 9),
            ("Add 12 and 31. Explain every step. ", "word " * 9),
        ),
        (
            ("Is it A?\n" + "the long passage about rivers and lakes " * 5, "Yes"),
            ("Is it B?\n" + "the long passage about rivers and lakes " * 5, "Yes"),
        ),
        (
            ("the long passage about rivers and lakes " * 5, "It is about water."),
            ("the long passage about rivers and lakes " * 5, "It is about mountains."),
        ),
        (
            ("What is the capital of France?", "Paris"),
            ("What is the capital of Finland?", "Helsinki"),
        ),
    ],
    ids=["another number", "another question", "another answer", "another word of few"],
)
def test_rows_with_another_question_or_answer_are_not_similar(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert similarity(chat(*one), chat(*other)) is None


def test_numbers_may_be_ignored() -> None:
    long = "the report says that sales went up in every region of the country by a good deal"
    one, other = (
        chat(f"Sum up: {long} 12", f"Good: {long}"),
        chat(f"Sum up: {long} 13", f"Good: {long}"),
    )
    assert similarity(one, other, 0.7) is None
    assert similarity(one, other, 0.7, ignore_numbers=True) is not None


def _pair(random_: random.Random, share: float) -> tuple[RowParts, RowParts]:
    words = random_.choices(WORDS, k=random_.randint(60, 300))
    other = [random_.choice(WORDS) if random_.random() < share else word for word in words]
    return tuple(RowParts("ask", " ".join(text), "", (), b"") for text in (words, other))  # type: ignore[return-value]


def test_sketches_propose_nearly_all_similar_pairs_and_estimate_their_similarity() -> None:
    random_ = random.Random(7)
    banding = Banding.for_threshold(0.8)
    alike = proposed = 0
    errors = []
    for _ in range(600):
        one, other = _pair(random_, random_.choice((0.01, 0.03, 0.05)))
        signatures = [minhash_signature(of) for of in (one, other)]
        keys = [banding.keys(of, b"") for of in signatures]
        low = [of.astype(np.uint8) for of in signatures]
        true = jaccard(shingles(one.answer), shingles(other.answer))
        errors.append(float(estimate_similarity(low[0], low[1][None])[0]) - true)
        if true >= 0.8:
            alike += 1
            proposed += bool((keys[0] == keys[1]).any())
    assert alike > 200
    assert proposed / alike > 0.98
    assert np.std(errors) < 0.06
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_banding_reaches_the_recall_at_every_threshold(threshold: float) -> None:
    banding = Banding.for_threshold(threshold)
    assert banding.bands * banding.values <= PERMUTATIONS
    assert 1 - (1 - threshold**banding.values) ** banding.bands >= 0.995


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=30))
def test_equal_rows_point_to_the_first(rows: list[tuple[int, int, bool]]) -> None:
    digests = np.array([[a, b] for a, b, _ in rows], np.uint64).reshape(-1, 2)
    alive = np.array([is_alive for *_, is_alive in rows], bool)
    first = first_equal(digests, alive)
    for index, (a, b, is_alive) in enumerate(rows):
        earlier = [i for i in range(index) if rows[i] == (a, b, True)]
        assert first[index] == (earlier[0] if is_alive and earlier else -1)


def test_rows_with_another_answer_point_to_the_first_row_of_the_prompt() -> None:
    prompts, answers = (
        np.array([5, 5, 0, 0, 5, 7], np.uint64),
        np.array([1, 2, 3, 4, 1, 1], np.uint64),
    )
    assert first_of_prompt(prompts, answers, np.ones(6, bool)).tolist() == [-1, 0, -1, -1, -1, -1]
