"""Models and judges behind servers that answer badly or stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.evaluation import EvalSelection
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.errors import ConfigError, EngineStoppedError
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.plan import plan_benchmark
from llmctl.evaluation.runner import NativeBackend
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.evaluation.scoring.judge import Judge
from llmctl.types import ApiEndpoint, BenchmarkPlan, EvalMode, SampleResult, ignore_progress
from tests.evaluation.benchmark_files import write_custom_benchmark, write_jsonl
from tests.evaluation.model_servers import chat_reply, flaky_server, scripted_server
from tests.server.servers import running_server


def plan_custom(folder: Path, mode: EvalMode) -> BenchmarkPlan:
    file = write_custom_benchmark(folder)
    return plan_benchmark(load_custom_benchmark(file), folder, EvalSelection(mode=mode))


@contextmanager
def connected(url: str, model: str | None = "m") -> Iterator[OpenAIBatchClient]:
    with OpenAIBatchClient(ApiEndpoint(url, model)) as client:
        client.load()
        yield client


def evaluate(plan: BenchmarkPlan, url: str) -> list[SampleResult]:
    reported: list[SampleResult] = []
    with connected(url) as client:
        results = NativeBackend().run([plan], client, reported.append, ignore_progress)
    assert results == reported
    return results


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ppl", "logprob"])
def test_a_server_scores_as_its_engine_does(tiny: HFRunner, tmp_path: Path, mode: EvalMode) -> None:
    plan = plan_custom(tmp_path, mode)
    with running_server(tiny) as url, connected(url, None) as client:
        served = NativeBackend().run([plan], client, lambda _: None, ignore_progress)
    direct = NativeBackend().run([plan], tiny, lambda _: None, ignore_progress)
    for one, other in zip(served, direct, strict=True):
        assert one.likelihoods == pytest.approx(other.likelihoods, rel=1e-5)
        assert one.prediction == other.prediction


def test_a_request_that_fails_loses_only_its_sample(tmp_path: Path) -> None:
    plan = plan_custom(tmp_path, "gen")
    with flaky_server(lambda _, body: 400 if "4?" in str(body["messages"]) else 200) as url:
        score = score_benchmark(plan, evaluate(plan, url))
    assert (score.overall.total, score.overall.answered, score.overall.failed) == (12, 11, 1)
    assert {part.name: part.failed for part in score.subjects} == {"cold": 1, "warm": 0}
    assert score.overall.accuracy == pytest.approx(4 / 11)
    assert any("1 of 12 samples failed" in warning for warning in score.warnings)


@pytest.mark.slow
def test_a_busy_server_is_retried_and_an_internal_error_loses_only_its_sample(
    tmp_path: Path,
) -> None:
    plan, busy = plan_custom(tmp_path, "gen"), [503]

    def status_for(_: int, body: dict[str, Any]) -> int:
        if "4?" in str(body["messages"]):
            return 500
        return busy.pop() if busy and "3?" in str(body["messages"]) else 200

    with flaky_server(status_for) as url:
        results = evaluate(plan, url)
    assert [(r.index, r.error) for r in results if r.error] == [(4, "500: scripted failure 500")]


def test_an_invalid_response_loses_only_its_sample_and_is_quoted(tmp_path: Path) -> None:
    plan = plan_custom(tmp_path, "gen")
    invalid: dict[str, dict[str, Any] | str] = {
        "0?": {"choices": []},
        "1?": {"error": {"message": "overloaded"}},
        "2?": {"choices": [{"message": None, "finish_reason": "stop"}]},
        "3?": {"choices": [{"message": {"content": [1]}}]},
        "4?": "<html>proxy</html>",
        "5?": '{"choices": [{"mess',
        "6?": "",
    }

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any] | str:
        question = body["messages"][-1]["content"].split("\n")[0]
        return invalid.get(question, chat_reply("A \ud83d"))

    with scripted_server(answer) as url:
        results = evaluate(plan, url)
    errors = [result.error for result in results if result.error]
    assert len(errors) == len(invalid)
    assert all("the response is not a completion" in error for error in errors)
    assert any("overloaded" in error for error in errors)
    assert any("<html>proxy" in error for error in errors)
    # Half of a surrogate pair cannot be written to a file.
    assert {result.reply for result in results if not result.error} == {"A ?"}


@pytest.mark.slow
def test_a_server_that_stops_loses_only_what_it_has_not_answered(tmp_path: Path) -> None:
    plan = plan_custom(tmp_path, "gen")
    reported: list[SampleResult] = []
    # The first subject has six samples.
    with (
        flaky_server(lambda number, _: 200 if number <= 6 else 0) as url,
        connected(url) as client,
        pytest.raises(EngineStoppedError, match="no server answers"),
    ):
        NativeBackend().run([plan], client, reported.append, ignore_progress)
    assert len(reported) == 6
    assert score_benchmark(plan, reported).overall.failed == 6


@pytest.mark.parametrize("logprobs", [None, [0.0] * 8, [float(n) for n in range(8)], [-1.0] * 8])
def test_a_server_without_real_log_likelihoods_is_refused(
    tmp_path: Path, logprobs: list[float] | None
) -> None:
    plan = plan_custom(tmp_path, "ppl")
    with (
        flaky_server(lambda *_: 200, logprobs=logprobs) as url,
        pytest.raises(ConfigError, match="returns no usable log-likelihoods") as refused,
    ):
        evaluate(plan, url)
    assert "--mode gen" in refused.value.hint


def test_a_judge_model_scores_rows_with_match_judge(tmp_path: Path) -> None:
    golds = ("the sky is blue", "grass", "unsure", "exactly")
    rows = [{"question": f"{n}?", "answer": gold, "match": "judge"} for n, gold in enumerate(golds)]
    rows[3]["match"] = "exact"
    file = write_jsonl(tmp_path / "own.jsonl", *rows)
    plan = plan_benchmark(load_custom_benchmark(file), tmp_path, EvalSelection())

    def judge_answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][0]["content"]
        assert "Student's answer: A\n" in text
        if "Right answer: unsure" in text:
            return chat_reply("Hard to say.")
        correct = "Right answer: the sky" in text
        return chat_reply("<think>INCORRECT?</think> CORRECT." if correct else "Incorrect")

    with (
        flaky_server(lambda *_: 200) as url,
        scripted_server(judge_answer) as judge_url,
        connected(url) as client,
        connected(judge_url) as judge,
    ):
        first, second, unclear, exact = NativeBackend(judge=Judge(judge)).run(
            [plan], client, lambda _: None, ignore_progress
        )
        with pytest.raises(ConfigError, match="no judge model is given") as refused:
            NativeBackend().run([plan], client, lambda _: None, ignore_progress)
    assert (first.correct, first.rule, first.reply) == (True, "judge", "A")
    assert (second.correct, second.error) == (False, "")
    assert "verdict is unclear: 'Hard to say.'" in unclear.error
    assert (exact.correct, exact.rule) == (False, "exact")
    assert "--judge-base-url" in refused.value.hint
