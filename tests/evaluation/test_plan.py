import sys
from pathlib import Path

import pytest

from llmctl.config.evaluation import EvalSelection
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark
from llmctl.evaluation.plan import plan_benchmark
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.types import SampleResult
from tests.evaluation.benchmark_files import write_ceval_dir, write_custom_benchmark, write_jsonl
from tests.evaluation.golden import DATA, golden, with_data


def test_examples_are_chat_turns_or_text(tmp_path: Path) -> None:
    benchmark = get_benchmark("ceval")
    folder = locate_data(benchmark, write_ceval_dir(tmp_path, ["law"]))
    chat, text = (
        plan_benchmark(
            benchmark, folder, EvalSelection(mode=mode, shots=2, limit=1, subjects=("law",))
        )
        .subjects[0]
        .questions[0]
        for mode in ("gen", "ppl")
    )
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2 + ["user"]
    question = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\nlaw 0，哪个{A}对？"
    assert chat.messages[-1].content == f"{question}\nA. 1\nB. 2\nC. 3\nD. 0\n答案: "
    assert [m.content for m in chat.messages[1::2]] == ["A", "B"]
    # OpenCompass' completion prompt has other white space between the turns.
    assert text.context.split() == " ".join(m.content or "" for m in chat.messages).split()
    assert text.context.endswith(f"{chat.messages[-1].content}\n")
    assert text.continuations == ("A", "B", "C", "D")
    shorter = text.with_fewer_examples()
    assert shorter is not None
    assert shorter.examples == text.examples[:1]
    assert shorter.fingerprint != text.fingerprint


def test_limit_selects_the_first_docs_and_seed_a_random_subset(tmp_path: Path) -> None:
    benchmark = get_benchmark("ceval")
    folder = locate_data(benchmark, write_ceval_dir(tmp_path, ["law"], size=40))

    def indices(seed: int | None) -> list[int]:
        selection = EvalSelection(subjects=("law",), limit=5, seed=seed)
        plan = plan_benchmark(benchmark, folder, selection)
        return [sample.index for sample in plan.subjects[0].questions]

    assert indices(None) == [0, 1, 2, 3, 4]
    assert indices(7) == indices(7) == sorted(indices(7)) != indices(8)


def test_all_missing_and_malformed_files_are_listed(tmp_path: Path) -> None:
    benchmark = get_benchmark("ceval")
    folder = locate_data(benchmark, write_ceval_dir(tmp_path, ["law", "logic"]))
    (folder / "val/law_val.csv").write_text("id,question,A,B,C,D,answer\n0,why,1,2,3,4,E\n")
    with pytest.raises(ConfigError) as refused:
        plan_benchmark(benchmark, folder, EvalSelection(subjects=("law", "logic", "physician")))
    assert "law_val.csv:2: the answer 'E' is not one of the options" in str(refused.value)
    assert "physician_val.csv is missing" in str(refused.value)
    assert "logic" not in str(refused.value)


def test_unknown_subject_mode_or_shots_are_rejected_with_the_valid_ones(tmp_path: Path) -> None:
    benchmark = get_benchmark("ceval")
    folder = locate_data(benchmark, write_ceval_dir(tmp_path, ["law"]))
    with pytest.raises(ConfigError) as refused:
        plan_benchmark(benchmark, folder, EvalSelection(subjects=("lwa",)))
    assert "law" in refused.value.hint
    with pytest.raises(ConfigError, match="gsm8k has no mode ppl"):
        BENCHMARKS["gsm8k"].prompt("ppl")
    with pytest.raises(ConfigError, match="5 examples for law, not 9"):
        plan_benchmark(benchmark, folder, EvalSelection(subjects=("law",), shots=9))


def test_missing_data_lists_every_searched_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))
    with pytest.raises(ConfigError) as refused:
        locate_data(get_benchmark("cmmlu"), tmp_path / "data")
    for folder in ("data/cmmlu", "store/benchmarks/cmmlu", "store/exams/cmmlu"):
        assert str(tmp_path / folder) in str(refused.value)
    assert "llmctl eval pull cmmlu" in refused.value.hint


def test_data_downloaded_by_an_earlier_release_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path))
    write_ceval_dir(tmp_path, ["law"])
    (tmp_path / "exams").mkdir()
    (tmp_path / "ceval/formal_ceval").rename(tmp_path / "exams/ceval")
    assert locate_data(get_benchmark("ceval"), None) == tmp_path / "exams/ceval"


def test_a_custom_benchmark_has_subjects_and_examples(tmp_path: Path) -> None:
    file = write_custom_benchmark(tmp_path)
    plan = plan_benchmark(load_custom_benchmark(file), file.parent, EvalSelection(shots=1))
    assert {subject.subject: len(subject.questions) for subject in plan.subjects} == {
        "cold": 6,
        "warm": 6,
    }
    assert plan.subjects[0].questions[0].examples == ("e?\nA. x\nB. y\nAnswer: B\n\n",)
    assert plan.chance == pytest.approx(1 / 3)


_opened: list[str] | None = None


def _record_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


def test_each_data_file_is_opened_once(tmp_path: Path) -> None:
    global _opened
    rows = [
        {"question": f"{n}?", "options": ["x", "y"], "answer": "A", "subject": f"subject {n % 30}"}
        for n in range(300)
    ]
    example = {"question": "e?", "options": ["x", "y"], "answer": "B", "split": "example"}
    custom = write_jsonl(tmp_path / "own.jsonl", *rows, example)
    benchmark = get_benchmark("ceval")
    ceval = locate_data(benchmark, write_ceval_dir(tmp_path, ["law", "logic"]))
    sys.addaudithook(_record_open)
    _opened = []
    try:
        plan = plan_benchmark(load_custom_benchmark(custom), tmp_path, EvalSelection(shots=1))
        assert (len(plan.subjects), plan.question_count) == (30, 300)
        assert _opened.count(str(custom)) == 1
        _opened.clear()
        plan_benchmark(benchmark, ceval, EvalSelection(subjects=("law", "logic"), shots=1))
        files = [file for file in _opened if file.endswith(".csv")]
        assert sorted(Path(file).name for file in files) == [
            "law_dev.csv",
            "law_val.csv",
            "logic_dev.csv",
            "logic_val.csv",
        ]
    finally:
        _opened = None


def test_the_data_hash_is_that_of_earlier_releases(tmp_path: Path) -> None:
    file = write_custom_benchmark(tmp_path, count=4)
    benchmark = load_custom_benchmark(file)
    hashes = [
        plan_benchmark(benchmark, tmp_path, EvalSelection(shots=shots)).data_hash[:16]
        for shots in (0, 1)
    ]
    assert hashes == ["b703946617e8677a", "d8f450c46b1ceb87"]


def test_invalid_rows_of_a_custom_benchmark_are_listed_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(
        "question,answer,match\nWhy?,because,exact\n,x,\nHow many?,six,numeric\nWhat?,(,regex\n"
        "Who?,me,nearly\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_custom_benchmark(file)
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines] == ["3", "4", "5", "6"]
    assert "question is missing" in lines[0]


def test_an_answer_may_be_the_text_of_its_option(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text('question,A,B,answer\nSky?,blue,green,blue\nSea?,"blue, wet",dry,b\n')
    plan = plan_benchmark(load_custom_benchmark(file), tmp_path, EvalSelection(mode="gen"))
    assert [sample.gold for sample in plan.subjects[0].questions] == ["A", "B"]


def test_options_may_be_a_list_or_an_object(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "own.jsonl",
        {"question": "?", "options": {"A": "red", "B": "dog"}, "answer": "B"},
        {"question": "?", "choices": ["red", "dog"], "answer": 0, "id": 7},
        {"question": "?", "choices": ["red", "dog"], "answer": 1},
        {"question": "?", "options": [4, 5], "answer": 5},
    )
    table = tmp_path / "table.csv"
    table.write_text('question,options,answer\n?,"[""4"",""5""]",5\n?,"{""A"":1,""B"":2}",B\n')
    golds = [
        [doc.gold for doc in load_custom_benchmark(one).reader.read(one).docs]
        for one in (file, table)
    ]
    assert golds == [["B", "A", "B", "B"], ["B", "B"]]


def test_misspelt_and_ambiguous_fields_are_rejected_with_their_line(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "own.jsonl",
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
    lines = [line.removeprefix(f"{file}:") for line in str(refused.value).splitlines()]
    assert lines == [
        "1: unknown field 'mach'; did you mean 'match'?",
        "1: unknown field 'level'; known: question, options, choices, answer, match, subject, "
        "split, A, B, ...",
        """3: options is 'red|dog'; it must be a list: ["red", "blue"]""",
        "4: the options are A, C; they must be A, B, ...",
        "5: options are given twice, as options and as A",
        "6: an option is empty or not text",
        "7: 30 options, but only 26 letters",
        "8: the answer 1 could be A or B of A, B, C",
    ]
    row: dict[str, object] = {"question": "?", "choices": ["red", "dog"], "answer": 1}
    with pytest.raises(ConfigError, match="no answer is 0, so they may count from 1"):
        load_custom_benchmark(write_jsonl(file, row, row))


@with_data
def test_all_rendered_ceval_prompts_equal_those_of_opencompass() -> None:
    benchmark = get_benchmark("ceval")
    folder = locate_data(benchmark, Path(DATA or ""))
    plan = plan_benchmark(benchmark, folder, EvalSelection(mode="gen"))
    expected = golden("oc_ceval_gen_prompts_52.json")
    roles = {"user": "HUMAN", "assistant": "BOT"}
    assert len(plan.subjects) == 52
    for subject in plan.subjects:
        theirs = expected[f"ceval-{subject.subject}"]
        ours = [{"role": roles[m.role], "prompt": m.content} for m in subject.questions[0].messages]
        assert ours == theirs["first_prompt"]
        assert "".join(sample.gold for sample in subject.questions) == theirs["gold_all"]


@with_data
def test_always_answering_a_scores_as_in_opencompass() -> None:
    benchmark = get_benchmark("ceval")
    plan = plan_benchmark(benchmark, locate_data(benchmark, Path(DATA or "")), EvalSelection())
    results = [
        SampleResult(*s.key, s.fingerprint, s.gold, prediction="A", correct=s.gold == "A")
        for subject in plan.subjects
        for s in subject.questions
    ]
    score = score_benchmark(plan, results)
    expected = golden("oc_ceval_always_A_accuracy.json")
    for subject in score.subjects:
        assert 100 * (subject.accuracy or 0) == pytest.approx(expected[f"ceval-{subject.name}"])
    assert round(100 * (score.overall.macro or 0), 2) == 22.26
    assert round(100 * (score.overall.accuracy or 0), 2) == 23.03
    assert any("A is 1346 of 1346" in warning for warning in score.warnings)
    assert any("random guessing" in warning for warning in score.warnings)


@with_data
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "hellaswag"])
def test_every_benchmark_has_its_stated_number_of_questions(name: str) -> None:
    benchmark = BENCHMARKS[name]
    plan = plan_benchmark(benchmark, locate_data(benchmark, Path(DATA or "")), EvalSelection())
    assert plan.question_count == benchmark.size
