import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.types import SampleResult
from tests.evaluation.benchmark_files import write_ceval_dir, write_custom_benchmark

DATA, GOLDEN = (os.environ.get(f"LLMCTL_EXAM_{name}") for name in ("DATA", "GOLDEN"))
with_data = pytest.mark.skipif(
    not (DATA and GOLDEN), reason="LLMCTL_EXAM_DATA and LLMCTL_EXAM_GOLDEN name no folders"
)


def golden(name: str) -> dict[str, dict[str, object]]:
    assert GOLDEN
    found: dict[str, dict[str, object]] = json.loads((Path(GOLDEN) / name).read_text())
    return found


def test_a_prompt_has_the_examples_as_turns_or_as_text(tmp_path: Path) -> None:
    suite = get_benchmark("ceval")
    folder = locate_data(suite, write_ceval_dir(tmp_path, ["law"]))
    selection = EvalSelection(mode="gen", subjects=("law",), shots=2, limit=1)
    chat = plan_benchmark(suite, folder, selection).subjects[0].questions[0]
    text = plan_benchmark(suite, folder, replace(selection, mode="ppl")).subjects[0].questions[0]
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2 + ["user"]
    ask = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\nlaw 0，哪个{A}对？"
    assert chat.messages[-1].content == f"{ask}\nA. 1\nB. 2\nC. 3\nD. 0\n答案: "
    assert [m.content for m in chat.messages[1::2]] == ["A", "B"]
    # OpenCompass puts other white space between the turns where they are one text.
    assert text.context.split() == " ".join(m.content for m in chat.messages).split()
    assert text.context.endswith(f"{chat.messages[-1].content}\n")
    assert text.continuations == ("A", "B", "C", "D")
    shorter = text.with_fewer_examples()
    assert shorter is not None
    assert shorter.examples == text.examples[:1]
    assert shorter.fingerprint != text.fingerprint


def test_a_limit_takes_the_first_rows_and_a_seed_any_of_them(tmp_path: Path) -> None:
    suite = get_benchmark("ceval")
    folder = locate_data(suite, write_ceval_dir(tmp_path, ["law"], size=40))

    def places(seed: int | None) -> list[int]:
        plan = plan_benchmark(suite, folder, EvalSelection(subjects=("law",), limit=5, seed=seed))
        return [question.index for question in plan.subjects[0].questions]

    assert places(None) == [0, 1, 2, 3, 4]
    assert places(7) == places(7) == sorted(places(7)) != places(8)


def test_every_missing_or_wrong_file_is_named(tmp_path: Path) -> None:
    suite = get_benchmark("ceval")
    folder = locate_data(suite, write_ceval_dir(tmp_path, ["law", "logic"]))
    (folder / "val/law_val.csv").write_text("id,question,A,B,C,D,answer\n0,why,1,2,3,4,E\n")
    with pytest.raises(ConfigError) as refused:
        plan_benchmark(suite, folder, EvalSelection(subjects=("law", "logic", "physician")))
    assert "law_val.csv:2: the answer 'E' is none of the options" in str(refused.value)
    assert "physician_val.csv is missing" in str(refused.value)
    assert "logic" not in str(refused.value)


def test_an_unknown_subject_or_mode_is_refused_with_what_there_is(tmp_path: Path) -> None:
    suite = get_benchmark("ceval")
    folder = locate_data(suite, write_ceval_dir(tmp_path, ["law"]))
    with pytest.raises(ConfigError) as refused:
        plan_benchmark(suite, folder, EvalSelection(subjects=("lwa",)))
    assert "law" in refused.value.hint
    with pytest.raises(ConfigError, match="cannot be asked in mode ppl"):
        BENCHMARKS["gsm8k"].form("ppl")
    with pytest.raises(ConfigError, match="5 examples for law, not 9"):
        plan_benchmark(suite, folder, EvalSelection(subjects=("law",), shots=9))


def test_missing_data_names_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))
    with pytest.raises(ConfigError) as refused:
        locate_data(get_benchmark("cmmlu"), tmp_path / "data")
    assert str(tmp_path / "data/cmmlu") in str(refused.value)
    assert str(tmp_path / "store/exams/cmmlu") in str(refused.value)
    assert "llmctl eval pull cmmlu" in refused.value.hint


def test_an_exam_of_ones_own_has_subjects_and_examples(tmp_path: Path) -> None:
    file = write_custom_benchmark(tmp_path)
    plan = plan_benchmark(load_custom_benchmark(file), file.parent, EvalSelection(shots=1))
    assert {subject.subject: len(subject.questions) for subject in plan.subjects} == {
        "cold": 6,
        "warm": 6,
    }
    assert plan.subjects[0].questions[0].examples == ("e?\nA. x\nB. y\nAnswer: B\n\n",)
    assert plan.chance == pytest.approx(1 / 3)


def test_every_wrong_row_of_ones_own_exam_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(
        "question,answer,match\nWhy?,because,exact\n,x,\nHow many?,six,numeric\nWhat?,(,regex\n"
        "Who?,me,nearly\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_custom_benchmark(file)
    told = str(refused.value).splitlines()
    assert [line.split(": ")[0].rpartition(":")[2] for line in told] == ["3", "4", "5", "6"]
    assert "no question" in told[0]


def test_an_answer_may_be_the_text_of_its_option(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text('question,A,B,answer\nSky?,blue,green,blue\nSea?,"blue, wet",dry,b\n')
    plan = plan_benchmark(load_custom_benchmark(file), tmp_path, EvalSelection(mode="gen"))
    assert [question.gold for question in plan.subjects[0].questions] == ["A", "B"]


def own_exam(folder: Path, *rows: dict[str, object]) -> Path:
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_options_are_understood_however_they_are_listed(tmp_path: Path) -> None:
    file = own_exam(
        tmp_path,
        {"question": "?", "options": {"A": "red", "B": "dog"}, "answer": "B"},
        {"question": "?", "choices": ["red", "dog"], "answer": 0, "id": 7},
        {"question": "?", "choices": ["red", "dog"], "answer": 1},
        {"question": "?", "options": [4, 5], "answer": 5},
    )
    table = tmp_path / "table.csv"
    table.write_text('question,options,answer\n?,"[""4"",""5""]",5\n?,"{""A"":1,""B"":2}",B\n')
    golds = [[row.gold for row in load_custom_benchmark(f).layout.rows(f)] for f in (file, table)]
    assert golds == [["B", "A", "B", "B"], ["B", "B"]]


def test_what_is_misspelt_or_could_mean_two_things_is_refused_with_its_line(tmp_path: Path) -> None:
    file = own_exam(
        tmp_path,
        {"question": "?", "answer": "6", "mach": "numeric", "level": 3},
        {"question": "?", "answer": "6", "mach": "numeric"},
        {"question": "?", "options": "red|dog", "answer": "A"},
        {"question": "?", "options": {"A": "red", "C": "dog"}, "answer": "A"},
        {"question": "?", "options": ["red", "dog"], "A": "red", "answer": "A"},
        {"question": "?", "options": ["red", None], "answer": "A"},
        {"question": "?", "options": [str(n) for n in range(30)], "answer": "A"},
        {"question": "?", "options": [1, 2, 3], "answer": 1},
    )
    with pytest.raises(ConfigError) as refused:
        load_custom_benchmark(file)
    told = [line.removeprefix(f"{file}:") for line in str(refused.value).splitlines()]
    assert told == [
        "1: unknown 'mach'; did you mean 'match'?",
        "1: unknown 'level'; it may be question, options, choices, answer, match, subject, split, "
        "A, B, ...",
        """3: options is 'red|dog'; it must be a list: ["red", "blue"]""",
        "4: the options are A, C; they must be A, B, ...",
        "5: options are given twice, as options and as A",
        "6: an option is empty, or no text",
        "7: 30 options, and there are 26 letters",
        "8: the answer 1 may be A or B of A, B, C",
    ]
    one = {"question": "?", "choices": ["red", "dog"], "answer": 1}
    with pytest.raises(ConfigError, match="no answer is 0, so they may count from 1"):
        load_custom_benchmark(own_exam(tmp_path, one, one))


@with_data
def test_all_rendered_ceval_prompts_are_opencompass_own() -> None:
    suite = get_benchmark("ceval")
    plan = plan_benchmark(suite, locate_data(suite, Path(DATA or "")), EvalSelection(mode="gen"))
    expected = golden("oc_ceval_gen_prompts_52.json")
    roles = {"user": "HUMAN", "assistant": "BOT"}
    assert len(plan.subjects) == 52
    for subject in plan.subjects:
        theirs = expected[f"ceval-{subject.subject}"]
        ours = [{"role": roles[m.role], "prompt": m.content} for m in subject.questions[0].messages]
        assert ours == theirs["first_prompt"]
        assert "".join(q.gold for q in subject.questions) == theirs["gold_all"]


@with_data
def test_always_a_scores_what_it_scores_in_opencompass() -> None:
    suite = get_benchmark("ceval")
    plan = plan_benchmark(suite, locate_data(suite, Path(DATA or "")), EvalSelection())
    answers = [
        SampleResult(*q.key, q.fingerprint, q.gold, prediction="A", correct=q.gold == "A")
        for subject in plan.subjects
        for q in subject.questions
    ]
    score = score_benchmark(plan, answers)
    expected = golden("oc_ceval_always_A_accuracy.json")
    for subject in score.subjects:
        assert 100 * (subject.accuracy or 0) == pytest.approx(expected[f"ceval-{subject.name}"])
    assert round(100 * (score.overall.macro or 0), 2) == 22.26
    assert round(100 * (score.overall.accuracy or 0), 2) == 23.03
    assert any("A is 1346 of 1346" in warning for warning in score.warnings)
    assert any("guessing" in warning for warning in score.warnings)


@with_data
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "hellaswag"])
def test_every_suite_has_as_many_questions_as_it_says(name: str) -> None:
    suite = BENCHMARKS[name]
    plan = plan_benchmark(suite, locate_data(suite, Path(DATA or "")), EvalSelection())
    assert plan.question_count == suite.size
