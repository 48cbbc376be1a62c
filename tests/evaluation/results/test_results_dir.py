import json
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.evaluation.results.results_dir import (
    PROMPTS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    ResultsDir,
    result_key,
)
from llmctl.types import BenchmarkPlan, EvalSample, Message, SampleResult, SubjectPlan

RUN = {"identity": {"dtype": "float32"}, "suites": []}


def result(index: int, **fields: object) -> SampleResult:
    return SampleResult("s", "law", index, "f", "A", **fields)  # type: ignore[arg-type]


def append(folder: ResultsDir, *results: SampleResult) -> None:
    with folder.append_results() as write:
        for one in results:
            write(one)


def test_an_incomplete_line_loses_no_other_result(tmp_path: Path) -> None:
    folder = ResultsDir(tmp_path)
    folder.begin(RUN, resume=False)
    append(folder, result(0, likelihoods={"A": 1.5}), result(1, reply="é"))
    with (tmp_path / RESULTS_FILE).open("a", encoding="utf-8") as stream:
        stream.write('{"suite": "s", "subj')
    append(folder, result(2, error="no"))
    assert folder.results() == [
        result(0, likelihoods={"A": 1.5}),
        result(1, reply="é"),
        result(2, error="no"),
    ]


def test_each_result_is_on_the_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    folder = ResultsDir(tmp_path)
    folder.begin(RUN, resume=False)
    with folder.append_results() as write:
        write(result(0))
        assert folder.results() == [result(0)]


def test_a_resumed_run_keeps_the_answered_samples_and_retries_the_failed(tmp_path: Path) -> None:
    ResultsDir(tmp_path).begin(RUN, resume=False)
    append(ResultsDir(tmp_path), result(0), result(1, error="no"))
    assert ResultsDir(tmp_path).begin(RUN, resume=True) == {result_key(result(0)): result(0)}


def test_results_of_another_run_are_never_mixed_in(tmp_path: Path) -> None:
    ResultsDir(tmp_path).begin(RUN, resume=False)
    with pytest.raises(ConfigError, match="already has the results of a run") as refused:
        ResultsDir(tmp_path).begin(RUN, resume=False)
    assert "--resume" in refused.value.hint
    other = {"identity": {"dtype": "bfloat16"}}
    with pytest.raises(ConfigError, match="has dtype 'float32', not 'bfloat16'"):
        ResultsDir(tmp_path).begin(other, resume=True)


def test_samples_are_read_back_as_written(tmp_path: Path) -> None:
    sample = EvalSample(
        "s", "law", 0, "A", ("A", "B"), messages=(Message("user", "ask"),), options=("x", "y")
    )
    subject = SubjectPlan("s", "law", "Law", ("hard",), (sample,))
    folder = ResultsDir(tmp_path)
    folder.write_prompts([BenchmarkPlan("s", "gen", 0, "p", "d", "here", 0.5, 9, (subject,))])
    samples, categories = folder.prompts()
    assert samples == {sample.key: sample}
    assert categories == {("s", "law"): ("hard",)}


def test_unknown_keys_are_ignored_and_wrong_types_are_errors(tmp_path: Path) -> None:
    folder = ResultsDir(tmp_path)
    line = {"suite": "s", "subject": "law", "index": 0, "fingerprint": "f", "gold": "A"}
    (tmp_path / RESULTS_FILE).write_text(json.dumps(line | {"later": 1}) + "\n")
    assert folder.results() == [result(0)]
    (tmp_path / RESULTS_FILE).write_text(json.dumps(line | {"index": "first"}) + "\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl is not valid: index"):
        folder.results()


def test_prompts_and_reports_of_the_first_release_are_read(tmp_path: Path) -> None:
    # Written by llmctl 0.1.0.
    (tmp_path / PROMPTS_FILE).write_text(
        '{"suite": "own", "subject": "own", "index": 0, "gold": "2", "labels": [], "messages": '
        '[{"role": "user", "content": "One and one?"}], "head": "", "examples": [], "gap": "", '
        '"body": "", "continuations": [], "extraction": "numeric", "options": [], "title": "own", '
        '"categories": []}\n'
    )
    (tmp_path / RESULTS_FILE).write_text(
        '{"suite": "own", "subject": "own", "index": 0, "fingerprint": "0ba3ea56a1a58b1c", '
        '"gold": "2", "prediction": "", "correct": false, "likelihoods": {}, "reply": "ab", '
        '"robust": "", "robust_correct": false, "rule": "none", "truncated": true, "shots": 0, '
        '"error": "", "too_long": false, "tokens": 33, "naive_tokens": 49}\n'
    )
    score = {
        "name": "own", "title": "own", "total": 2, "answered": 1, "correct": 0, "failed": 1,
        "unparsed": 1, "truncated": 1, "accuracy": 0.0, "stderr": None, "low": 0.0, "high": 0.79,
        "macro": None, "robust_accuracy": 0.0,
    }  # fmt: skip
    suite = {
        "suite": "own", "mode": "gen", "shots": 0, "prompt_hash": "a2c83a7ce156",
        "data_hash": "e8d8", "data_source": "/data", "chance": None, "overall": score,
        "categories": [], "subjects": [score], "letters": {}, "warnings": ["w"], "tokens": 33,
        "naive_tokens": 49,
    }  # fmt: skip
    report = {
        "model": "tiny", "backend": "native", "how": {"dtype": "float32"}, "suites": [suite],
        "seconds": 0.1, "folder": "/runs/own", "run_id": None, "complete": True, "too_long": 1,
    }  # fmt: skip
    (tmp_path / REPORT_FILE).write_text(json.dumps(report))
    folder = ResultsDir(tmp_path)
    (sample,), (answer,) = folder.prompts()[0].values(), folder.results()
    assert sample.prompt == "[user] One and one?"
    assert (answer.reply, answer.truncated, answer.naive_tokens) == ("ab", True, 49)
    loaded = folder.report()
    assert loaded.failed == 1
    assert loaded.suites[0].overall.high == 0.79
    assert loaded.suites[0].warnings == ("w",)
