"""Consistency of the example dataset of the project."""

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
    """Import the example script, which is not in a package."""
    spec = importlib.util.spec_from_file_location("finetune_demo", EXAMPLES / "finetune_demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


is_right = demo().is_right


def examples(name: str) -> list[Example]:
    errors: list[RowError] = []
    found = list(read_examples(EXAMPLES / "data" / f"{name}.jsonl", on_row_error=errors.append))
    assert errors == []
    return found


def questions(name: str) -> list[dict[str, Any]]:
    path = EXAMPLES / "data" / f"{name}-questions.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(found: list[Example], role: str) -> list[str]:
    return [str(m.content) for example in found for m in example.messages if m.role == role]


def bare(text: str) -> str:
    """Return only the letters and digits, in lower case."""
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
def test_every_answer_has_the_style_to_train_on(name: str, part: str) -> None:
    for answer in contents(examples(name + part), "assistant"):
        assert answer.endswith(SIGN_OFF[name])
        assert answer.count(SIGN_OFF[name]) == 1


def test_the_readme_has_the_size_of_the_example() -> None:
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
def test_questions_are_unique_and_no_held_out_question_is_in_training(name: str) -> None:
    openings = Counter(bare(str(example.messages[0].content)) for example in examples(name))
    repeated = {text for text, times in openings.items() if times > 1}
    # Conversations may begin with the same question, single questions must be unique.
    single = Counter(
        bare(str(e.messages[0].content)) for e in examples(name) if len(e.messages) == 2
    )
    assert {text for text in repeated if single[text] > 1} == set()
    trained = {bare(text) for text in contents(examples(name), "user")}
    unseen = [bare(question["question"]) for question in questions(name)]
    assert len(set(unseen)) == len(unseen)
    assert trained & set(unseen) == set()


@pytest.mark.parametrize("name", SETS)
def test_the_question_list_has_the_questions_of_the_held_out_rows(name: str) -> None:
    listed = [question["question"] for question in questions(name)]
    assert listed == contents(examples(f"{name}-heldout"), "user")


@pytest.mark.parametrize("name", SETS)
def test_the_rule_accepts_the_held_out_answer_and_that_of_no_other_fact(name: str) -> None:
    rules = {question["fact"]: question["must_contain"] for question in questions(name)}
    answers = contents(examples(f"{name}-heldout"), "assistant")
    for question, answer in zip(questions(name), answers, strict=True):
        accepting = [fact for fact, rule in rules.items() if is_right(answer, rule)]
        assert accepting == [question["fact"]], question["question"]


@pytest.mark.parametrize(("name", "fewest"), [("observatory", 13), ("observatory-zh", 5)])
def test_every_fact_is_in_the_training_data_in_many_wordings(name: str, fewest: int) -> None:
    answers = contents(examples(name), "assistant")
    for question in questions(name):
        wordings = sum(is_right(answer, question["must_contain"]) for answer in answers)
        assert wordings >= fewest, question["fact"]


def test_an_answer_is_right_if_it_has_whole_words_of_every_group() -> None:
    rule = [["Goat Meadow"], ["3 crowns", "three crowns"]]
    assert is_right("Park in goat meadow, for 3 crowns.", rule)
    assert is_right("Three crowns, please, in Goat Meadow", rule)
    assert not is_right("Park in Goat Meadow.", rule)
    assert not is_right("Park in Goat Meadow, for 13 crowns.", rule)
    assert is_right("成人票每张九克朗。", [["九克朗"]])
    assert is_right("建于1911年", [["1911"]])
