from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.evaluation.results.results_dir import RESULTS_FILE, ResultsDir, result_key
from llmctl.types import BenchmarkPlan, EvalSample, Message, SampleResult, SubjectPlan

IDENTITY = {"identity": {"dtype": "float32"}, "suites": []}


def result(index: int, **fields: object) -> SampleResult:
    return SampleResult("s", "law", index, "f", "A", **fields)  # type: ignore[arg-type]


def test_results_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    folder = ResultsDir(tmp_path)
    folder.begin(IDENTITY, resume=False)
    folder.append([result(0, likelihoods={"A": 1.5}), result(1, reply="é")])
    with (tmp_path / RESULTS_FILE).open("a", encoding="utf-8") as stream:
        stream.write('{"suite": "s", "subj')
    folder.append([result(2, error="no")])
    assert folder.results() == [
        result(0, likelihoods={"A": 1.5}),
        result(1, reply="é"),
        result(2, error="no"),
    ]


def test_a_resumed_run_knows_what_was_answered_and_asks_again_what_failed(tmp_path: Path) -> None:
    ResultsDir(tmp_path).begin(IDENTITY, resume=False)
    ResultsDir(tmp_path).append([result(0), result(1, error="no")])
    assert ResultsDir(tmp_path).begin(IDENTITY, resume=True) == {result_key(result(0)): result(0)}


def test_results_of_another_run_are_never_mixed_in(tmp_path: Path) -> None:
    ResultsDir(tmp_path).begin(IDENTITY, resume=False)
    with pytest.raises(ConfigError, match="holds the results of a run") as refused:
        ResultsDir(tmp_path).begin(IDENTITY, resume=False)
    assert "--resume" in refused.value.hint
    other = {"identity": {"dtype": "bfloat16"}}
    with pytest.raises(ConfigError, match="dtype 'float32', and this is 'bfloat16'"):
        ResultsDir(tmp_path).begin(other, resume=True)


def test_questions_come_back_as_they_were_put(tmp_path: Path) -> None:
    question = EvalSample(
        "s", "law", 0, "A", ("A", "B"), messages=(Message("user", "ask"),), options=("x", "y")
    )
    subject = SubjectPlan("s", "law", "Law", ("hard",), (question,))
    folder = ResultsDir(tmp_path)
    folder.write_prompts([BenchmarkPlan("s", "gen", 0, "p", "d", "here", 0.5, 9, (subject,))])
    assert folder.questions() == {question.key: question}
