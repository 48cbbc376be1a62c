"""Custom benchmarks with several right options per question."""

import json
from pathlib import Path

import pytest

from llmctl.config.evaluation import EvalSelection
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.benchmarks.readers import BenchmarkDataError
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.evaluation.plan import plan_benchmark
from llmctl.evaluation.scoring.extraction import extract_answer

OPTIONS = {"question": "Which are prime?", "A": "two", "B": "four", "C": "five", "D": "AB"}


def _benchmark(directory: Path, *answers: object) -> Benchmark:
    file = directory / "primes.jsonl"
    rows = [json.dumps(OPTIONS | {"answer": answer}) for answer in answers]
    file.write_text("\n".join(rows), encoding="utf-8")
    return load_custom_benchmark(file)


def _golds(file: Path) -> list[str]:
    return [doc.gold for doc in load_custom_benchmark(file).reader.read(file).docs]


def test_several_answers_are_letters_texts_or_indices(tmp_path: Path) -> None:
    answers = (["C", "A"], "CA", "A, C", ["two", "five"], [0, 2], "A", "AB", ["A"])
    benchmark = _benchmark(tmp_path, *answers)
    assert _golds(tmp_path / "primes.jsonl") == ["AC", "AC", "AC", "AC", "AC", "A", "D", "A"]
    assert set(benchmark.prompts) == {"gen"}
    plan = plan_benchmark(benchmark, tmp_path, EvalSelection())
    assert plan.chance == pytest.approx(1 / 15)


def test_a_file_with_single_answers_keeps_all_modes(tmp_path: Path) -> None:
    assert set(_benchmark(tmp_path, "A", ["C"]).prompts) > {"gen"}


@pytest.mark.parametrize(
    ("reply", "correct"), [("A, C", True), ("C and A.", True), ("A", False), ("ACD", False)]
)
def test_a_reply_states_all_right_options_and_no_other(
    tmp_path: Path, reply: str, correct: bool
) -> None:
    benchmark = _benchmark(tmp_path, ["A", "C"])
    plan = plan_benchmark(benchmark, tmp_path, EvalSelection())
    [sample] = plan.subjects[0].questions
    extracted = extract_answer(sample, reply)
    assert extracted.correct == extracted.robust_correct == correct


@pytest.mark.parametrize("answer", [[], ["A", "A"], ["A", "E"], ["A", ["B"]], [None]])
def test_wrong_lists_of_answers_are_errors(tmp_path: Path, answer: object) -> None:
    with pytest.raises(BenchmarkDataError, match="answer"):
        _benchmark(tmp_path, "A", answer)


def test_indices_from_one_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkDataError, match="count from 1"):
        _benchmark(tmp_path, [1, 2], [2, 3])


def test_a_cell_of_a_csv_file_holds_several_answers(tmp_path: Path) -> None:
    file = tmp_path / "primes.csv"
    file.write_text(
        'question,A,B,answer\nWhich?,2,3,"A,B"\nWhich?,2,3,"[""A"", ""B""]"\nWhich?,2,3,AB\n',
        encoding="utf-8",
    )
    assert _golds(file) == ["AB", "AB", "AB"]
