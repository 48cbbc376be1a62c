"""Parts of the OpenCompass backend that do not need OpenCompass.

`test_run.py` has the tests that do.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import ConfigError, LlmctlError
from llmctl.evaluation.opencompass import venv
from llmctl.evaluation.opencompass.backend import shares_prefixes
from llmctl.evaluation.opencompass.child.http import (
    ServerClient,
    ServerRequestError,
    score_by_echo,
    score_shared_prefix,
)
from llmctl.evaluation.opencompass.child.response_cache import ResponseCache, cache_key
from llmctl.evaluation.opencompass.launch import LOG, OpenCompassError, launch
from llmctl.evaluation.opencompass.outputs import read_subject
from llmctl.services.private_server import serve_privately
from llmctl.types import ApiEndpoint, EvalSample, SubjectPlan
from tests.evaluation.model_servers import chat_reply, scripted_server
from tests.server.servers import running_server

TEXTS = [["One and one make two", "One and one make three"], ["Yes is yes", "Yes is no"]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.slow
def test_a_failed_installation_names_the_alternative_and_leaves_nothing(
    home: Path, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    if sys.version_info[:2] > venv.NEWEST_PYTHON:
        with pytest.raises(ConfigError, match=r"on Python 3\.12 at most"):
            venv.setup_venv(wheels)
        return
    with pytest.raises(LlmctlError, match=r"opencompass==0\.5\.4") as caught:
        venv.setup_venv(wheels)
    assert "--backend native" in caught.value.hint
    assert [entry.name for entry in (home / "opencompass").iterdir()] == [".lock"]


def test_a_missing_wheelhouse_is_an_error(home: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        venv.setup_venv(home / "nothing")


@pytest.mark.usefixtures("home")
def test_an_environment_built_for_other_packages_is_stale() -> None:
    python = venv.venv_dir() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    made = venv.venv_dir() / venv.MANIFEST
    now = asdict(venv.BuildManifest.now())
    made.write_text(json.dumps(now))
    assert venv.find_python() == python
    for name, other in (("packages", ["/moved"]), ("version", "0.1"), ("requirements", [])):
        made.write_text(json.dumps({**now, name: other}))
        assert venv.find_python() is None
    made.write_text("{")
    assert venv.find_python() is None


def test_an_error_of_opencompass_is_reported_with_its_log(tmp_path: Path) -> None:
    # llmctl's own Python has no OpenCompass, so its first import fails.
    request: dict[str, object] = {"benchmarks": []}
    with pytest.raises(OpenCompassError, match="No module named 'opencompass'") as caught:
        launch(Path(sys.executable), tmp_path, request, lambda _: None, api_key="k", data=tmp_path)
    assert str(tmp_path / LOG) in caught.value.hint
    assert "Traceback" in (tmp_path / LOG).read_text()


@pytest.mark.slow
def test_a_busy_server_is_retried_and_a_refusal_is_not() -> None:
    asked: list[str] = []

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any] | int:
        asked.append(body["case"])
        if body["case"] == "busy":
            return 503 if asked.count("busy") < 3 else chat_reply("A")
        return 400

    with scripted_server(answer) as url:
        server = ServerClient(url, "m", "")
        assert server.post("/chat/completions", {"case": "busy"})["choices"]
        with pytest.raises(ServerRequestError, match="400: scripted failure 400"):
            server.post("/chat/completions", {"case": "wrong"})
    assert asked == ["busy"] * 3 + ["wrong"]


def test_scores_by_shared_prefix_and_by_echo_are_equal(tiny: HFRunner) -> None:
    with serve_privately(tiny) as private:
        one = ServerClient(private.base_url, private.model or "", private.api_key or "")
        shared = [(index, scores) for index, scores, _ in score_shared_prefix(one, TEXTS)]
        echoed = [(index, scores) for index, scores, _ in score_by_echo(one, TEXTS, 2)]
    for (index, first), (same, second) in zip(shared, echoed, strict=True):
        assert index == same
        assert not isinstance(first, ServerRequestError)
        assert not isinstance(second, ServerRequestError)
        for (logprob, count), (again, same_count) in zip(first, second, strict=True):
            assert count == same_count
            assert logprob == pytest.approx(again, abs=1e-4)


def test_the_former_route_of_loglikelihoods_is_used_for_older_servers() -> None:
    paths: list[str] = []

    def answer(path: str, _: dict[str, Any]) -> dict[str, Any] | int:
        paths.append(path)
        if path.endswith("/loglikelihoods"):
            return 404
        return {"index": 0, "computed": 4, "scores": [{"logprob": -1.5, "tokens": 2}]}

    with scripted_server(answer) as url:
        found = list(score_shared_prefix(ServerClient(url, "m", ""), [["ab"]]))
    assert found == [(0, [(-1.5, 2)], 4)]
    assert [path.rpartition("/")[2] for path in paths] == ["loglikelihoods", "score"]


def test_a_server_that_stops_gives_an_error_for_each_remaining_group() -> None:
    with scripted_server(lambda *_: 0) as url:
        answers = list(score_shared_prefix(ServerClient(url, "m", ""), TEXTS))
    assert [index for index, _, _ in answers] == [0, 1]
    assert all("does not answer" in str(scores) for _, scores, _ in answers)


def test_the_private_server_needs_its_key(tiny: HFRunner) -> None:
    with (
        serve_privately(tiny) as private,
        pytest.raises(ServerRequestError, match="401"),
    ):
        ServerClient(private.base_url, "m", "guess").post("/completions", {})


def echo(token_logprobs: list[float | None], count: int) -> dict[str, Any]:
    choice = {"text": "", "logprobs": {"token_logprobs": token_logprobs}}
    return {"choices": [choice], "usage": {"prompt_tokens": count}}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (404, "404"),
        (chat_reply("no"), "echoes no log-likelihoods"),
        (echo([None, 0.0, 0.0, -1.0], 3), "echoed 2 log-likelihoods for 3 tokens"),
        (echo([None, -1.0], 5), "echoed 1 log-likelihoods for 5 tokens"),
        (echo([None, -1.0, -2.0, -9.0], 3), "counts 3 and 3 tokens"),
    ],
)
def test_a_server_without_real_log_likelihoods_is_refused(
    reply: dict[str, Any] | int, why: str
) -> None:
    def answer(path: str, _: dict[str, Any]) -> dict[str, Any] | int:
        return reply if path == "/completions" else 404

    with scripted_server(answer) as url, pytest.raises(ConfigError, match=why) as caught:
        shares_prefixes(ApiEndpoint(url, "m"))
    assert "--mode gen" in caught.value.hint


def test_both_kinds_of_servers_are_recognised(tiny: HFRunner) -> None:
    with serve_privately(tiny) as private:
        assert shares_prefixes(private)
    with running_server(tiny) as url:
        assert not shares_prefixes(ApiEndpoint(f"{url}/v1", tiny.info().model_id))


def test_a_cache_with_an_incomplete_line_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ResponseCache(file).put(cache_key("a"), {"reply": "ja, 是"})
    with file.open("a") as stream:
        stream.write('{"key": "b", "ans')
    again = ResponseCache(file)
    again.put(cache_key("c"), [1, 2])
    last = ResponseCache(file)
    assert last.get(cache_key("a")) == {"reply": "ja, 是"}
    assert last.get(cache_key("c")) == [1, 2]
    assert last.get("b") is None


def question(index: int, gold: str) -> EvalSample:
    return EvalSample("ceval", "law", index, gold, labels=tuple("AB"), extraction="first_capital")


def written(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_replies_have_the_strict_answer_of_opencompass_and_the_robust_one(tmp_path: Path) -> None:
    subject = SubjectPlan("ceval", "law", "法学", (), (question(4, "B"), question(7, "A")))
    predictions = {
        "0": {"prediction": "The answer is B", "llmctl": {"finish_reason": "stop", "tokens": 9}},
    }
    results = {"accuracy": 0.0, "details": {"type": "GEN", "0": {"pred": "T", "correct": False}}}
    read, lost = read_subject(
        subject,
        "gen",
        written(tmp_path, "predictions.json", predictions),
        written(tmp_path, "results.json", results),
    )
    assert (read.index, read.prediction, read.correct) == (4, "T", False)
    assert (read.robust, read.robust_correct) == ("B", True)
    assert read.reply == "The answer is B"
    assert (lost.index, lost.error) == (7, "OpenCompass wrote no prediction for it")


@pytest.mark.parametrize(
    "detail",
    [
        {"pred": ["NULL"], "answer": ["B"], "correct": [False]},
        {"predictions": "NULL", "references": "B"},
        {"pred": "NULL", "refr": "B", "is_correct": False},
    ],
)
def test_details_of_every_evaluator_are_read(tmp_path: Path, detail: object) -> None:
    subject = SubjectPlan("ceval", "law", "法学", (), (question(0, "B"),))
    (read,) = read_subject(
        subject,
        "gen",
        written(tmp_path, "predictions.json", {"0": {"prediction": "no idea"}}),
        written(tmp_path, "results.json", {"accuracy": 0.0, "details": [detail]}),
    )
    assert (read.prediction, read.correct) == ("NULL", False)


def test_an_error_beside_a_prediction_is_that_of_the_sample(tmp_path: Path) -> None:
    subject = SubjectPlan("ceval", "law", "法学", (), (question(0, "B"), question(1, "A")))
    entry = {"label: A": {"PPL": 1.5}, "label: B": {"PPL": 1.25}, "prediction": "B", "gold": "B"}
    predictions = {"0": entry, "1": {"prediction": "", "llmctl": {"error": "500: no"}}}
    found, lost = read_subject(
        subject,
        "ppl",
        written(tmp_path, "predictions.json", predictions),
        written(tmp_path, "results.json", {"accuracy": 50.0, "details": []}),
    )
    assert found.correct
    assert found.likelihoods == {"A": 1.5, "B": 1.25}
    assert lost.error == "500: no"
