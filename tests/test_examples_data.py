"""The training example that ships with the project: is it whole, honest and fit to decide by?"""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.io.reader import read_examples
from llmctl.data.rows.row_errors import RowError
from llmctl.types import Example

EXAMPLES = Path(__file__).parent.parent / "examples"
SETS = ("observatory", "observatory-zh")
SIGN_OFF = {"observatory": "Clear skies!", "observatory-zh": "祝您晴空万里！"}


def demo() -> Any:
    """Import the example script, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("finetune_demo", EXAMPLES / "finetune_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


is_right = demo().is_right


def examples(name: str) -> list[Example]:
    problems: list[RowError] = []
    found = list(read_examples(EXAMPLES / "data" / f"{name}.jsonl", on_row_error=problems.append))
    assert problems == []
    return found


def questions(name: str) -> list[dict[str, Any]]:
    path = EXAMPLES / "data" / f"{name}-questions.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def said(found: list[Example], role: str) -> list[str]:
    return [str(m.content) for example in found for m in example.messages if m.role == role]


def bare(text: str) -> str:
    """Leave only letters and digits, so that punctuation makes no new question."""
    return re.sub(r"[\W_]+", "", text).casefold()


@pytest.mark.parametrize("part", ["", "-heldout"])
@pytest.mark.parametrize("name", SETS)
def test_every_row_is_a_conversation_that_ends_with_an_answer(name: str, part: str) -> None:
    for example in examples(name + part):
        roles = [message.role for message in example.messages]
        assert example.format == "messages"
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2), example.origin


@pytest.mark.parametrize("part", ["", "-heldout"])
@pytest.mark.parametrize("name", SETS)
def test_every_answer_has_the_manner_that_is_to_be_learnt(name: str, part: str) -> None:
    for answer in said(examples(name + part), "assistant"):
        assert answer.endswith(SIGN_OFF[name])
        assert answer.count(SIGN_OFF[name]) == 1


def test_the_example_is_as_large_as_the_readme_says() -> None:
    text = (EXAMPLES / "data" / "README.md").read_text(encoding="utf-8")
    train, held_out = examples("observatory"), examples("observatory-heldout")
    assert f"`observatory.jsonl` | {len(train)} |" in text
    assert f"`observatory-heldout.jsonl` | {len(held_out)} |" in text
    chinese = [len(examples("observatory-zh")), *[len(questions("observatory-zh"))] * 2]
    assert f"| {', '.join(map(str, chinese))} |" in text
    facts = {question["fact"] for question in questions("observatory")} - {"unknown"}
    assert f"{len(facts)} facts" in text
    talks = sum(len(example.messages) > 2 for example in train)
    assert f"{talks} conversations of two turns" in text


@pytest.mark.parametrize("name", SETS)
def test_no_question_is_there_twice_and_no_held_out_one_occurs_in_training(name: str) -> None:
    opening = Counter(bare(str(example.messages[0].content)) for example in examples(name))
    twice = {text for text, times in opening.items() if times > 1}
    # Several conversations may begin alike, single questions may not.
    single = Counter(
        bare(str(e.messages[0].content)) for e in examples(name) if len(e.messages) == 2
    )
    assert {text for text in twice if single[text] > 1} == set()
    asked = {bare(text) for text in said(examples(name), "user")}
    unseen = [bare(question["question"]) for question in questions(name)]
    assert len(set(unseen)) == len(unseen)
    assert asked & set(unseen) == set()


@pytest.mark.parametrize("name", SETS)
def test_the_question_list_asks_what_the_held_out_rows_ask(name: str) -> None:
    listed = [question["question"] for question in questions(name)]
    assert listed == said(examples(f"{name}-heldout"), "user")


@pytest.mark.parametrize("name", SETS)
def test_the_rule_accepts_the_held_out_answer_and_that_of_no_other_fact(name: str) -> None:
    rules = {question["fact"]: question["must_contain"] for question in questions(name)}
    answers = said(examples(f"{name}-heldout"), "assistant")
    for question, answer in zip(questions(name), answers, strict=True):
        accepting = [fact for fact, rule in rules.items() if is_right(answer, rule)]
        assert accepting == [question["fact"]], question["question"]


@pytest.mark.parametrize(("name", "fewest"), [("observatory", 13), ("observatory-zh", 5)])
def test_every_fact_is_taught_in_many_wordings(name: str, fewest: int) -> None:
    answers = said(examples(name), "assistant")
    for question in questions(name):
        taught = sum(is_right(answer, question["must_contain"]) for answer in answers)
        assert taught >= fewest, question["fact"]


def test_an_answer_is_right_when_every_group_is_in_it_as_whole_words() -> None:
    rule = [["Goat Meadow"], ["3 crowns", "three crowns"]]
    assert is_right("Park in goat meadow, for 3 crowns.", rule)
    assert is_right("Three crowns, please, in Goat Meadow", rule)
    assert not is_right("Park in Goat Meadow.", rule)
    assert not is_right("Park in Goat Meadow, for 13 crowns.", rule)
    assert is_right("成人票每张九克朗。", [["九克朗"]])
    assert is_right("建于1911年", [["1911"]])
