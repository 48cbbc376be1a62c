"""The `llmctl eval` commands."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.app import main
from llmctl.config.model import DEFAULT_MODEL
from llmctl.monitor.read.runs import open_runs
from tests.cli.process import RunningCommand, error_lines, run_process
from tests.evaluation.benchmark_files import write_custom_benchmark, write_jsonl
from tests.evaluation.model_servers import chat_reply, flaky_server, scripted_server
from tests.fakes import FakeEngine
from tests.server.servers import running_server

pytestmark = pytest.mark.usefixtures("own_store")


def run_eval(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def eval_args(model: Path, benchmark: Path, *words: str) -> list[str]:
    return ["--dataset", str(benchmark), "--model", str(model), "--dtype", "float32", *words]


def results(folder: Path) -> dict[tuple[str, int], Any]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {(v["subject"], v["index"]): v for v in map(json.loads, lines)}


@pytest.mark.slow
def test_custom_benchmark_is_evaluated_reported_and_tracked(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = eval_args(
        tiny_folder,
        write_custom_benchmark(tmp_path),
        "--output",
        str(out),
        "--shots",
        "1",
        "--json",
    )
    assert run_eval(*words) == 0
    report = json.loads(capsys.readouterr().out)
    (suite,) = report["suites"]
    assert suite["overall"]["answered"] == suite["overall"]["total"] == 12
    assert (suite["mode"], suite["shots"]) == ("ppl", 1)
    assert report["how"]["dtype"] == "float32"
    assert len(results(out)) == 12
    assert "| colours/" not in (out / "report.md").read_text()  # no categories
    assert "answered 12 of 12 samples" in (out / "report.html").read_text()

    assert run_eval("show", str(out), "--wrong", "--subject", "warm", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    wrong = [
        r for (subject, _), r in results(out).items() if subject == "warm" and not r["correct"]
    ]
    assert [one["result"] for one in shown] == wrong
    assert shown[0]["question"]["examples"]

    with pytest.raises(SystemExit):
        main(["runs", "list", "--kind", "eval", "--json"])
    (tracked,) = json.loads(capsys.readouterr().out)
    assert tracked["metrics"]["eval/colours/warm"] == pytest.approx(
        next(s["accuracy"] for s in suite["subjects"] if s["name"] == "warm")
    )


def test_two_runs_are_compared_by_sample(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = write_custom_benchmark(tmp_path)
    for name, mode in (("one", "ppl"), ("two", "logprob_norm")):
        words = ("--mode", mode, "--output", str(tmp_path / name), "--no-track")
        assert run_eval(*eval_args(tiny_folder, benchmark, *words)) == 0
    capsys.readouterr()
    assert run_eval("compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    flipped = [key for key in one if one[key]["correct"] != two[key]["correct"]]
    assert len(found["flipped"]) == len(flipped)
    assert found["comparisons"][0]["questions"] == 12
    assert any("mode ppl in the first run and logprob_norm" in note for note in found["notes"])

    page = tmp_path / "both.html"
    assert run_eval("report", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(page)) == 0
    table = capsys.readouterr().out
    assert table.count("| colours") == 2
    assert "not comparable" in table
    assert "colours has mode ppl in the first run and logprob_norm" in page.read_text()
    assert run_eval("report", str(tmp_path / "one"), "-o", str(tmp_path / "page.pdf")) == 2


def test_failed_sample_exits_1_and_resume_evaluates_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, out = write_custom_benchmark(tmp_path), tmp_path / "run"
    broken = True

    def verdict(_: int, body: dict[str, Any]) -> int:
        return 400 if broken and "4?" in str(body["messages"]) else 200

    with flaky_server(verdict) as url:
        words = [
            "--dataset",
            str(benchmark),
            "--base-url",
            url,
            "--model",
            "m",
            "--output",
            str(out),
        ]
        words += ["--mode", "gen", "--no-track"]
        assert run_eval(*words) == 1
        output = capsys.readouterr()
        assert "1 samples failed" in output.err
        assert "4/11" in output.out
        assert run_eval(*words) == 2  # the folder has results
        broken = False
        assert run_eval(*words, "--resume") == 0
    assert "4/12" in capsys.readouterr().out


@pytest.mark.slow
def test_lost_server_fails_the_remaining_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, out = write_custom_benchmark(tmp_path), tmp_path / "run"
    # The first subject has six questions.
    with flaky_server(lambda number, _: 200 if number <= 6 else 0) as url:
        words = [
            "--dataset",
            str(benchmark),
            "--base-url",
            url,
            "--model",
            "m",
            "--output",
            str(out),
        ]
        assert run_eval(*words, "--mode", "gen", "--no-track", "--json") == 1
    output = capsys.readouterr()
    (suite,) = json.loads(output.out)["suites"]
    assert [(s["name"], s["answered"], s["failed"]) for s in suite["subjects"]] == [
        ("cold", 6, 0),
        ("warm", 0, 6),
    ]
    assert "6 samples failed" in output.err
    assert f"--resume --output {out}" in output.err


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_result(tiny_folder: Path, tmp_path: Path) -> None:
    benchmark = write_custom_benchmark(tmp_path, count=240)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = ["eval", *eval_args(tiny_folder, benchmark, "--no-track", "--batch-size", "2")]
    with RunningCommand(*words, "--output", str(killed)) as process:
        file = killed / "results.jsonl"
        deadline = time.monotonic() + 100
        while not (file.exists() and file.read_text().count("\n") > 5):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    answered = file.read_text().count("\n")
    assert answered < 240
    assert run_eval(*words[1:], "--output", str(killed), "--resume") == 0
    assert run_eval(*words[1:], "--output", str(whole)) == 0
    resumed, uninterrupted = results(killed), results(whole)
    assert resumed.keys() == uninterrupted.keys()
    assert len(file.read_text().splitlines()) <= 241  # a line that was cut off, at most
    for key, one in uninterrupted.items():
        assert resumed[key]["prediction"] == one["prediction"]
        assert resumed[key]["likelihoods"] == pytest.approx(one["likelihoods"], rel=1e-6)


def test_samples_beyond_the_context_are_reported_without_a_retry_hint(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = tmp_path / "long.csv"
    benchmark.write_text(
        f"question,answer\nshort?,x\n{'long ' * 60}?,x\n"
    )  # 300 bytes for a context of 256
    out = tmp_path / "run"
    words = eval_args(
        tiny_folder, benchmark, "--output", str(out), "--max-new-tokens", "1", "--no-track"
    )
    assert run_eval(*words) == 1
    output = capsys.readouterr().err
    assert "1 samples failed; 1 of them do not fit the model's context" in output
    assert "--resume" not in output
    assert [result["too_long"] for result in results(out).values()] == [False, True]


@pytest.mark.slow
def test_stopped_evaluation_resumes_in_the_same_tracked_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = threading.Event()
    held: list[bool] = []

    def verdict(number: int, _: dict[str, Any]) -> int:
        if number > 6:  # the first subject has six questions
            if number == 7:
                os.kill(os.getpid(), signal.SIGINT)
            held.append(left.wait(20))
        return 200

    with flaky_server(verdict) as url:
        words = [
            "--dataset",
            str(write_custom_benchmark(tmp_path)),
            "--base-url",
            url,
            "--model",
            "m",
        ]
        words += ["--mode", "gen"]
        assert run_eval(*words) == 130
        assert not held  # it waits for no answer
        left.set()
        output = capsys.readouterr().err
        (out,) = (tmp_path / "store" / "evals").iterdir()
        assert f"results are written to {out}" in output
        assert "stopped: 6 of 12 samples are evaluated" in output
        assert f"--resume --output {out} continues" in output
        with open_runs(None) as store:
            (stopped,) = store.runs()
        assert stopped.status == "killed"
        for _ in range(2):
            assert run_eval(*words, "--resume", "--output", str(out)) == 0
            with open_runs(None) as store:
                (finished,) = store.runs()
            assert (finished.run_id, finished.status) == (stopped.run_id, "finished")
            assert finished.metrics["eval/colours/answered"] == 12


def test_all_errors_of_a_config_file_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text("dataset: ceval\nmode: guess\nshotz: 3\n")
    ended = run_process("eval", "--config", str(file))
    assert ended.returncode == 2
    output = error_lines(ended.stderr)
    assert any("eval.yaml:2: mode" in line for line in output)
    assert any("shotz; did you mean shots?" in line for line in output)


def test_two_benchmarks_of_one_name_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    one, two = write_custom_benchmark(tmp_path), write_custom_benchmark(tmp_path / "other", count=6)
    words = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--dataset"]
    assert run_eval(*words, str(one), "--dataset", str(two)) == 2
    output = capsys.readouterr().err
    assert f"{one} and {two} are both named colours" in output
    assert "rename one" in output


def test_missing_benchmark_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval("--dataset", "hellaswag", "--data-dir", str(tmp_path)) == 2
    output = capsys.readouterr().err
    assert "store/benchmarks/hellaswag" in output
    assert "HF_HUB_OFFLINE is set" in output
    assert "llmctl eval pull hellaswag" in output
    assert run_eval("--dataset", "cevil") == 2


def test_list_of_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval("list", "--json") == 0
    known = {suite["name"]: suite for suite in json.loads(capsys.readouterr().out)}
    assert known["ceval"]["questions"] == 1346
    assert known["mmlu"]["modes"][0] == "ppl"
    assert run_eval("--list") == 0


def test_the_model_named_for_a_server_is_sent_even_if_it_is_the_default(tmp_path: Path) -> None:
    file, models = write_custom_benchmark(tmp_path, count=2), []

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        models.append(body["model"])
        return chat_reply("A")

    with scripted_server(answer) as url:
        words = ["--dataset", str(file), "--base-url", url, "--mode", "gen", "--no-track"]
        assert run_eval(*words, "--model", DEFAULT_MODEL) == 0
    assert models == [DEFAULT_MODEL] * 2


def test_llmctl_model_names_a_local_model_and_is_not_sent_to_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_MODEL", "my-local-model")
    file, engine = write_custom_benchmark(tmp_path, count=2), FakeEngine()
    with running_server(engine) as url:
        words = ["--dataset", str(file), "--base-url", url, "--mode", "gen", "--no-track"]
        assert run_eval(*words) == 0
    assert len(engine.requests) == 2


@pytest.mark.slow
def test_keys_of_the_servers_come_from_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "own.jsonl", {"question": "?", "answer": "a", "match": "judge"})
    monkeypatch.setenv("LLMCTL_JUDGE_API_KEY", "judge-key")
    with (
        running_server(FakeEngine(), api_keys=("model-key",)) as url,
        running_server(FakeEngine(("CORRECT",)), api_keys=("judge-key",)) as judge,
    ):
        words = ["--dataset", str(file), "--base-url", url, "--no-track", "--json"]
        assert run_eval(*words, "--judge-base-url", judge) != 0
        monkeypatch.setenv("LLMCTL_API_KEY", "model-key")
        capsys.readouterr()
        assert run_eval(*words, "--judge-base-url", judge) == 0
        assert json.loads(capsys.readouterr().out)["suites"][0]["overall"]["correct"] == 1
        # The judge's key alone does not ask for a judge; as an option it needs the judge's URL.
        plain = write_custom_benchmark(tmp_path, count=2)
        assert run_eval("--dataset", str(plain), "--base-url", url, "--mode", "gen") == 0
        words = ["--dataset", str(plain), "--base-url", url, "--judge-api-key", "k"]
        assert run_eval(*words) == 2
    assert "the judge has no server" in capsys.readouterr().err
