"""OpenCompass itself, run over small exams. Skipped where its environment has not been built.

`llmctl eval install-opencompass` builds it; tests never do.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import ConfigError
from llmctl.evaluation.backend import ServerModel
from llmctl.evaluation.opencompass import OpenCompassBackend, venv
from llmctl.evaluation.opencompass.configs import plan_config
from llmctl.evaluation.plan import EvalSelection
from llmctl.evaluation.runner import NativeBackend
from llmctl.services.private_server import serve_privately
from llmctl.types import BenchmarkPlan, EvalSample, SampleResult, ignore_progress
from tests.evaluation.scripted_server import chat_reply, scripted_server
from tests.evaluation.small_benchmark import plan_small_benchmark, write_ceval, write_mmlu

pytestmark = pytest.mark.skipif(
    venv.find_python() is None, reason="OpenCompass' environment has not been built"
)

Told = Callable[[SampleResult], None]


def run(
    folder: Path, plans: list[BenchmarkPlan], endpoint: ServerModel, told: Told = lambda _: None
) -> list[SampleResult]:
    return OpenCompassBackend(folder, print).run(plans, endpoint, told, ignore_progress)


def of(results: list[SampleResult], subject: str) -> list[SampleResult]:
    return [result for result in results if result.subject == subject]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failing")


@pytest.fixture(scope="module")
def failing(folder: Path) -> list[SampleResult]:
    """Always 'A', but one question of law is too long, and the server dies within marxism."""
    exam = plan_small_benchmark("ceval", write_ceval(folder / "data"), "gen", shots=1)
    answered = threading.Semaphore(3)

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any] | int:
        asked = body["messages"][-1]["content"]
        if "law2:" in asked:
            return 413
        if "marxism" in asked and not answered.acquire(blocking=False):
            return 0
        return chat_reply("A")

    told: list[SampleResult] = []
    with scripted_server(answer) as url:
        results = run(folder, [exam], ServerModel(url, "always-a"), told.append)
    assert sorted(r.key for r in told) == sorted(r.key for r in results)
    return results


def test_one_refused_question_costs_one_question(failing: list[SampleResult]) -> None:
    law = of(failing, "law")
    assert [result.index for result in law if result.error] == [2]
    assert "413: told to fail" in law[2].error
    assert [result.index for result in failing if result.too_long] == [2]
    assert [r.correct for r in law if not r.error] == [r.gold == "A" for r in law if not r.error]


def test_a_subject_between_failures_is_whole(failing: list[SampleResult]) -> None:
    logic = of(failing, "logic")
    assert [result.error for result in logic] == [""] * 6
    assert [result.correct for result in logic] == [True, False, False, False, True, False]
    assert {(r.reply, r.prediction, r.robust) for r in logic} == {("A", "A", "A")}


def test_a_server_that_dies_costs_what_it_had_not_answered(failing: list[SampleResult]) -> None:
    marxism = of(failing, "marxism")
    lost = [result for result in marxism if result.error]
    assert len(lost) == 3
    assert all("does not answer" in result.error for result in lost)


def test_only_what_was_lost_is_asked_again(folder: Path, failing: list[SampleResult]) -> None:
    exam = plan_small_benchmark("ceval", folder / "data", "gen", shots=1)
    asked: list[str] = []

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body["messages"][-1]["content"])
        return chat_reply("A")

    with scripted_server(answer) as url:
        whole = run(folder, [exam], ServerModel(url, "always-a"))
    assert [result.error for result in whole] == [""] * 18
    assert len(asked) == sum(bool(result.error) for result in failing) == 4
    assert [(r.prediction, r.correct) for r in of(whole, "logic")] == [
        (r.prediction, r.correct) for r in of(failing, "logic")
    ]


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> list[BenchmarkPlan]:
    folder = tmp_path_factory.mktemp("exams")
    mmlu = plan_small_benchmark("mmlu", write_mmlu(folder / "mmlu"), "ppl", shots=1)
    # The last two questions, as a run that is resumed may ask.
    some = tuple(replace(s, questions=s.questions[2:]) for s in mmlu.subjects)
    return [
        plan_small_benchmark("ceval", write_ceval(folder / "ceval"), "ppl", shots=1),
        replace(mmlu, subjects=some),
    ]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFRunner]:
    """A tiny model, a token a byte, with room for an example."""
    from llmctl.types import ModelSpec
    from tests.tiny import save_tiny_model

    folder = save_tiny_model(
        tmp_path_factory.mktemp("models") / "roomy", max_position_embeddings=2048
    )
    with HFRunner(ModelSpec(str(folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


def test_both_backends_agree_question_by_question(
    exams: list[BenchmarkPlan], roomy: HFRunner, tmp_path: Path
) -> None:
    with serve_privately(roomy) as endpoint:
        judged = run(tmp_path, exams, endpoint)
    native = NativeBackend().run(exams, roomy, lambda _: None, ignore_progress)
    assert len(native) == 18 + 4
    for ours, theirs in zip(native, judged, strict=True):
        assert (ours.key, ours.error, theirs.error) == (theirs.key, "", "")
        assert ours.likelihoods == pytest.approx(theirs.likelihoods, abs=1e-5)
        assert (ours.prediction, ours.correct) == (theirs.prediction, theirs.correct)
        assert (ours.fingerprint, ours.shots) == (theirs.fingerprint, theirs.shots)


def test_any_configuration_is_planned_as_opencompass_words_it_and_sat(
    roomy: HFRunner, tmp_path: Path
) -> None:
    data = tmp_path / "exams"
    ours = plan_small_benchmark("mmlu", write_mmlu(data / "mmlu", questions=3), "ppl", shots=2)
    wanted = EvalSelection(subjects=("lukaemon_mmlu_anatomy",), shots=2, limit=2)
    theirs = plan_config("mmlu_ppl_ac766d", data, wanted, ignore_progress)
    assert (theirs.mode, theirs.shots, theirs.prompt_hash[:6]) == ("ppl", 2, "ac766d")
    (subject,) = theirs.subjects
    anatomy = next(one for one in ours.subjects if one.subject == "anatomy")
    native = anatomy.questions[:2]
    for question, same in zip(subject.questions, native, strict=True):
        assert _texts(question) == _texts(same)
        assert (question.labels, question.gold) == (same.labels, same.gold)
    with serve_privately(roomy) as endpoint:
        judged = run(tmp_path / "run", [theirs], endpoint)
    ours = replace(ours, subjects=(replace(anatomy, questions=native),))
    expected = NativeBackend().run([ours], roomy, lambda _: None, ignore_progress)
    for one, other in zip(judged, expected, strict=True):
        assert one.likelihoods == pytest.approx(other.likelihoods, abs=1e-5)
        assert (one.prediction, one.correct) == (other.prediction, other.correct)


def _texts(question: EvalSample) -> list[str]:
    return [question.context + end for end in question.continuations]


def test_a_configuration_or_data_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration") as refused:
        plan_config("helaswag_ppl", tmp_path, EvalSelection(), ignore_progress)
    assert "hellaswag_ppl" in refused.value.hint
    with pytest.raises(ConfigError, match=r"hellaswag/hellaswag\.jsonl is missing"):
        plan_config("hellaswag_ppl_47bff9", tmp_path, EvalSelection(), ignore_progress)
