"""Split into train and eval, and merging of weighted sources."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.digests import is_held_out, prompt_key
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.data.operations.merge import WeightedSource, merge_sources
from llmctl.data.operations.split import split_rows
from llmctl.data.rows.row_errors import DataError
from llmctl.errors import ConfigError
from llmctl.types import Example, Message, SourceLocation
from tests.data.conversations import TEXTS


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def questions(first: int, last: int) -> list[dict[str, object]]:
    return [{"prompt": f"What is {n}?", "completion": str(n), "id": n} for n in range(first, last)]


def sides(folder: Path, rows: list[dict[str, object]], **how: float) -> tuple[list[object], ...]:
    source = write(folder / "all.jsonl", rows)
    train, held = folder / "train.jsonl", folder / "eval.jsonl"
    how = {"fraction": 0.2} | how
    split_rows(source, train, held, options=ReadOptions(), overwrite=True, **how)  # type: ignore[arg-type]
    return tuple([row["id"] for row in read(path)] for path in (train, held))


def test_added_rows_move_no_other_row(tmp_path: Path) -> None:
    train, held = sides(tmp_path, questions(0, 200))
    more_train, more_held = sides(tmp_path, questions(0, 300))
    assert train == [n for n in more_train if n in range(200)]
    assert held == [n for n in more_held if n in range(200)]
    assert 20 < len(held) < 60


def test_every_row_is_kept_with_all_columns(tmp_path: Path) -> None:
    rows = questions(0, 50)
    train, held = sides(tmp_path, rows)
    assert sorted(map(str, train + held)) == sorted(str(n) for n in range(50))
    assert read(tmp_path / "eval.jsonl")[0] in rows


def test_another_seed_holds_out_other_rows(tmp_path: Path) -> None:
    assert sides(tmp_path, questions(0, 100)) != sides(tmp_path, questions(0, 100), seed=1)


@given(question=TEXTS, answers=st.lists(TEXTS, min_size=2, max_size=4), seed=st.integers(0, 99))
def test_a_prompt_is_on_one_side_with_all_its_answers(
    question: str, answers: list[str], seed: int
) -> None:
    found = set()
    for answer in answers:
        turns = (Message("user", question), Message("assistant", answer))
        example = Example(SourceLocation("a", 1), "messages", turns)
        found.add(is_held_out(prompt_key(example), 0.5, seed))
    assert len(found) == 1


@given(key=st.binary(min_size=16, max_size=16), seed=st.integers(-(2**63), 2**63 - 1))
def test_a_larger_fraction_holds_out_the_same_keys_and_more(key: bytes, seed: int) -> None:
    held = [is_held_out(key, fraction / 10, seed) for fraction in range(11)]
    assert held == sorted(held)
    assert not held[0]
    assert held[-1]


def test_the_held_out_share_is_the_given_fraction() -> None:
    held = sum(is_held_out(n.to_bytes(16, "big"), 0.1) for n in range(20_000))
    assert 1850 < held < 2150


def test_prompts_that_differ_only_in_case_and_white_space_are_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": text, "completion": str(n), "id": n}
        for n, text in enumerate(["what is  up?", "What is up?", "What is up?\n"] * 20)
    ]
    with pytest.raises(DataError, match="none of 60 rows goes to"):
        sides(tmp_path, rows)


def test_train_and_eval_must_be_different_files(tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", questions(0, 9))
    same = tmp_path / "same.jsonl"
    with pytest.raises(ConfigError, match="both be written"):
        split_rows(source, same, same, fraction=0.5, options=ReadOptions())


def merged(tmp_path: Path, *sources: WeightedSource, seed: int = 0) -> list[object]:
    out = tmp_path / "out.jsonl"
    merge_sources(sources, out, seed=seed, options=ReadOptions(), overwrite=True)
    return [row["id"] for row in read(out)]


def test_a_weight_is_how_often_each_row_is_written(tmp_path: Path) -> None:
    a = str(write(tmp_path / "a.jsonl", questions(0, 3)))
    b = str(write(tmp_path / "b.jsonl", questions(100, 300)))
    found = merged(tmp_path, WeightedSource(a, 2), WeightedSource(b, 0.5))
    assert found[:6] == [0, 0, 1, 1, 2, 2]
    assert 70 < len(found[6:]) < 130
    assert len(set(found[6:])) == len(found[6:])
    assert found == merged(tmp_path, WeightedSource(a, 2), WeightedSource(b, 0.5))
    assert found != merged(tmp_path, WeightedSource(a, 2), WeightedSource(b, 0.5), seed=1)


def test_a_larger_weight_keeps_the_rows_of_a_smaller_one(tmp_path: Path) -> None:
    a = str(write(tmp_path / "a.jsonl", questions(0, 100)))
    few, many = (set(merged(tmp_path, WeightedSource(a, weight))) for weight in (0.3, 0.6))
    assert few < many


def test_merge_can_convert_all_rows_to_one_format(tmp_path: Path) -> None:
    a = str(write(tmp_path / "a.jsonl", questions(0, 2)))
    b = str(write(tmp_path / "b.jsonl", [{"instruction": "Sing.", "output": "La."}]))
    out = tmp_path / "out.jsonl"
    merge_sources([WeightedSource(a), WeightedSource(b)], out, to="messages", options=ReadOptions())
    assert [list(row) for row in read(out)] == [["messages"]] * 3


@pytest.mark.parametrize("weight", [0, -1, 1001, float("nan")])
def test_a_weight_out_of_range_is_an_error(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight"):
        WeightedSource("a.jsonl", weight)
