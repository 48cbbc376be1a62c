import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import ConfigError, EngineStoppedError
from llmctl.evaluation.backend import ServerModel
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.endpoint_adapter import resolve_server_model
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.evaluation.runner import NativeBackend
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.evaluation.scoring.judge import Judge
from llmctl.types import BenchmarkPlan, EvalMode, SampleResult, ignore_progress
from tests.evaluation.benchmark_files import write_custom_benchmark
from tests.evaluation.flaky_server import flaky_server
from tests.evaluation.scripted_server import chat_reply
from tests.evaluation.scripted_server import scripted_server as judging
from tests.server.servers import running_server


def plan(folder: Path, mode: EvalMode) -> BenchmarkPlan:
    return plan_benchmark(
        load_custom_benchmark(write_custom_benchmark(folder)), folder, EvalSelection(mode=mode)
    )


def sit(plan: BenchmarkPlan, url: str) -> list[SampleResult]:
    told: list[SampleResult] = []
    place = ServerModel(url, "m")
    assert NativeBackend().run([plan], place, told.append, ignore_progress) == told
    return told


@pytest.mark.parametrize("mode", ["ppl", "logprob"])
def test_a_server_of_ours_and_its_engine_score_alike(
    tiny: HFRunner, tmp_path: Path, mode: EvalMode
) -> None:
    asked = plan(tmp_path, mode)
    with running_server(tiny) as url:
        place = resolve_server_model(url, None, "")
        served = NativeBackend().run([asked], place, lambda _: None, ignore_progress)
    direct = NativeBackend().run([asked], tiny, lambda _: None, ignore_progress)
    for one, other in zip(served, direct, strict=True):
        assert one.likelihoods == pytest.approx(other.likelihoods, rel=1e-5)
        assert one.prediction == other.prediction


def test_one_failing_question_costs_that_question(tmp_path: Path) -> None:
    asked = plan(tmp_path, "gen")
    with flaky_server(lambda _, body: 400 if "4?" in str(body["messages"]) else 200) as url:
        score = score_benchmark(asked, sit(asked, url))
    assert (score.overall.total, score.overall.answered, score.overall.failed) == (12, 11, 1)
    assert {part.name: part.failed for part in score.subjects} == {"cold": 1, "warm": 0}
    assert score.overall.accuracy == pytest.approx(4 / 11)
    assert any("1 of 12 questions have no answer" in warning for warning in score.warnings)


def test_an_answer_that_is_none_costs_its_question_and_is_shown(tmp_path: Path) -> None:
    asked = plan(tmp_path, "gen")
    odd: dict[str, dict[str, Any] | str] = {
        "0?": {"choices": []},
        "1?": {"error": {"message": "overloaded"}},
        "2?": {"choices": [{"message": None, "finish_reason": "stop"}]},
        "3?": {"choices": [{"message": {"content": [1]}}]},
        "4?": "<html>proxy</html>",
        "5?": '{"choices": [{"mess',
        "6?": "",
    }

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any] | str:
        return odd.get(body["messages"][-1]["content"].split("\n")[0], chat_reply("A \ud83d"))

    with judging(answer) as url:
        results = sit(asked, url)
    errors = [result.error for result in results if result.error]
    assert len(errors) == len(odd)
    assert all("its answer is no completion" in error for error in errors)
    assert any("overloaded" in error for error in errors)
    assert any("<html>proxy" in error for error in errors)
    # Half of a character, which no file can hold.
    assert {result.reply for result in results if not result.error} == {"A ?"}


def test_a_server_that_goes_away_leaves_what_it_answered(tmp_path: Path) -> None:
    asked = plan(tmp_path, "gen")
    told: list[SampleResult] = []
    # The first subject has six questions.
    with (
        flaky_server(lambda number, _: 200 if number <= 6 else 0) as url,
        pytest.raises(EngineStoppedError, match="does not answer"),
    ):
        NativeBackend().run([asked], ServerModel(url, "m"), told.append, ignore_progress)
    assert len(told) == 6
    assert score_benchmark(asked, told).overall.failed == 6


@pytest.mark.parametrize("logprobs", [None, [0.0] * 8, [float(n) for n in range(8)], [-1.0] * 8])
def test_likelihoods_that_are_not_real_are_refused(
    tmp_path: Path, logprobs: list[float] | None
) -> None:
    asked = plan(tmp_path, "ppl")
    with (
        flaky_server(lambda *_: 200, logprobs=logprobs) as url,
        pytest.raises(ConfigError, match="does not say how likely a text is") as refused,
    ):
        sit(asked, url)
    assert "--mode gen" in refused.value.hint


def test_an_address_where_nobody_is_says_so() -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        resolve_server_model("http://127.0.0.1:9", None, "")


def test_another_model_judges_what_no_rule_can_and_a_verdict_that_is_none_is_no_answer(
    tmp_path: Path,
) -> None:
    file = tmp_path / "own.jsonl"
    golds = ("the sky is blue", "grass", "unsure", "exactly")
    rows = [{"question": f"{n}?", "answer": gold, "match": "judge"} for n, gold in enumerate(golds)]
    rows[3]["match"] = "exact"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = plan_benchmark(load_custom_benchmark(file), tmp_path, EvalSelection())

    def verdict(_: str, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][0]["content"]
        assert "Student's answer: A\n" in text
        if "Right answer: unsure" in text:
            return chat_reply("Hard to say.")
        right = "Right answer: the sky" in text
        return chat_reply("<think>INCORRECT?</think> CORRECT." if right else "Incorrect")

    with flaky_server(lambda *_: 200) as url, judging(verdict) as judge:
        backend = NativeBackend(judge=Judge(ServerModel(judge, "wise")))
        first, second, none, exact = backend.run(
            [asked], ServerModel(url, "m"), lambda _: None, ignore_progress
        )
    assert (first.correct, first.rule, first.reply) == (True, "judge", "A")
    assert (second.correct, second.error) == (False, "")
    assert "verdict cannot be read: 'Hard to say.'" in none.error
    assert (exact.correct, exact.rule) == (False, "exact")
    with pytest.raises(ConfigError, match="nobody judges") as refused:
        NativeBackend().run([asked], ServerModel(url, "m"), lambda _: None, ignore_progress)
    assert "--judge-base-url" in refused.value.hint
