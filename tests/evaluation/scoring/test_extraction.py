import pytest

from llmctl.evaluation.scoring.extraction import (
    extract_answer,
    first_capital,
    first_option,
    last_number,
)
from llmctl.evaluation.scoring.robust import robust_number, robust_option
from llmctl.types import EvalSample


@pytest.mark.parametrize(
    ("reply", "capital", "option", "careful"),
    [
        ("B", "B", "B", "B"),
        ("The answer is B", "T", "B", "B"),
        ("Answer: C", "A", "C", "C"),
        ("A和B都不对，只有选项C是对的", "A", "A", "C"),
        ("<think>A? no, B</think> C", "A", "C", "C"),
        ("答案是：D。", "D", "D", "D"),
        ("故选B", "B", "B", "B"),
        ("A dog barks at B", "A", "B", "B"),
        ("I do not know", "I", "", ""),
        ("It is A or B", "I", "B", ""),
        (r"So \boxed{D}", "S", "D", "D"),
    ],
)
def test_strict_rules_err_as_opencompass_does_and_the_careful_one_does_not(
    reply: str, capital: str, option: str, careful: str
) -> None:
    assert first_capital(reply) == capital
    assert first_option(reply, "ABCD") == option
    assert robust_option(reply, "ABCD", ())[0] == careful


def test_the_words_of_one_option_alone_are_an_answer() -> None:
    options = ("red", "green", "blue")
    assert robust_option("It must be green!", "ABC", options) == ("B", "option's text")
    assert robust_option("red, or green", "ABC", options)[0] == ""


@pytest.mark.parametrize(
    ("reply", "strict", "careful"),
    [
        ("So the answer is 1,234 dollars.", "234", "1234"),
        ("12 - 5 = 7\n#### 7", "7", "7"),
        ("The answer is 8.\n\nQuestion: And 9?", "8", "8"),
        ("none", "NULL", ""),
        ("it is -3.50", "-3.50", "-3.50"),
    ],
)
def test_numbers(reply: str, strict: str, careful: str) -> None:
    assert last_number(reply) == strict
    assert robust_number(reply)[0] == careful


@pytest.mark.parametrize(
    ("extraction", "gold", "reply", "right"),
    [
        ("exact", "Paris", " paris.", True),
        ("exact", "Paris", "It is Paris", False),
        ("contains", "Paris", "It is PARIS, I think", True),
        ("numeric", "1,000", "about 1000 of them", True),
        ("numeric", "0.5", "one half", False),
        ("regex", r"\bh[ae]llo\b", "oh hallo!", True),
        ("regex", r"^no$", "no way", False),
    ],
)
def test_free_answers_are_judged_as_their_row_says(
    extraction: str, gold: str, reply: str, right: bool
) -> None:
    question = EvalSample("own", "own", 0, gold, extraction=extraction)  # type: ignore[arg-type]
    assert extract_answer(question, reply).correct is right
